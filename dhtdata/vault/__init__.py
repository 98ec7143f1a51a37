"""The shards of one dataset as a mount sees them: where rows are, what is here, what is asked for and when.

| module | part |
|---|---|
| ``shards`` | where rows are: the shards of a split's groups |
| ``blocks`` | their blocks, from block tables or estimated |
| ``crew`` | threads |
| ``vault`` | shards opened, checked, fetched by the peer |
| ``horizon`` | what a loop will read, told to the peer |
| ``readahead`` | blocks asked for before they are needed |
"""
