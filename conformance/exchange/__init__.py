"""What crosses to and from programs that are not ours: cases written out, activations read in.

`layout` knows the shape of every tap and reads declared layouts, `describe` puts a case into words and tensors,
`writing` and `reading` are safetensors, `manifest` is the JSON beside them, `peer` makes a dump a peer. Everything
that comes in is untrusted.
"""
