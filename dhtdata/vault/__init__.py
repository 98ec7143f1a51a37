"""The shards of one dataset as a mount sees them: where rows are, what is here, what is asked for and when.

| module | part |
|---|---|
| ``shards`` | where rows are: the shards of a split's groups |
| ``blocks`` | their blocks, from block tables or estimated |
| ``crew`` | threads |
| ``opened`` | a shard's file in memory, and which blocks of it are here |
| ``trust`` | what must be checked before this process reads it |
| ``vault`` | shards opened, and fetched by the peer |
| ``horizon`` | what a loop will read, told to the peer |
| ``readahead`` | blocks asked for before they are needed |
"""
