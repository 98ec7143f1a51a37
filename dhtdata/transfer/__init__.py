"""Transfer: blobs between peers over HTTP/1.1, static-file compatible, every block verified before it is written.

| module | part |
|---|---|
| *the wire* | |
| ``answers`` | binary answers of the interface |
| ``membership`` | proof that a request comes from a member of a private network |
| ``dialling`` | connections out: where they may lead, and from which address |
| ``client`` | small blobs and answers from one provider |
| ``wire`` | ranges of blobs for threads |
| ``folders`` | the same from a mirror in a folder |
| ``rates`` | limits on bytes per second |
| ``meters`` | how fast bytes come and go, and the least time that a fetch could take |
| *deciding, pure* | |
| ``masks`` | sets of blocks as integers |
| ``providers`` | how well each provider serves, who is avoided for how long |
| ``availability`` | who has which blocks, and how rare each is |
| ``members`` | the same as have-maps tell it; who of a crowd fetches what first |
| ``picker`` | wanted blocks, and runs of them |
| ``orders`` | what is on its way, and when it will be here |
| ``planner`` | whom to ask for what next |
| *fetching* | |
| ``layout`` | ordinals of the shards of some contents |
| ``search`` | one question to many providers |
| ``swarm`` | keeps the providers of one dataset known |
| ``packed`` | packed blocks: where they are, when they are welcome |
| ``threads`` | runs of blocks from a provider to the disk |
| ``jobs`` | who waits for which blocks of a shard |
| ``fetcher`` | many blocks from many providers at once |
| *serving* | |
| ``packer`` | what is packed, and when |
| ``holdings`` | what this peer holds and may serve |
| ``uploads`` | who may send large pieces now |
| ``sending`` | bytes of a file to a connection |
| ``server`` | the HTTP interface |
"""
