"""Transfer: blobs between peers over HTTP/1.1, static-file compatible, every block verified before it is written.

| module | part |
|---|---|
| ``answers`` | binary answers of the interface |
| ``meters`` | how fast bytes come and go, and the least time that a fetch could take |
| ``membership`` | proof that a request comes from a member of a private network |
| ``layout`` | ordinals of the shards of some contents |
| ``client`` | one question to one peer |
| ``providers`` | who has what, how well they serve, who is avoided |
| ``picker`` | pure: which blocks from whom next |
| ``swarm`` | keeps the providers of one dataset known |
| ``fetcher`` | many blocks from many providers at once |
| ``holdings`` | what this peer holds and may serve |
| ``server`` | the HTTP interface |
"""
