"""What crosses the border to programs that are not ours: cases go out, activations come in.

`layouts` knows the shape of every tap and reads declared layouts. `case_words` puts a case into words and tensors.
`writing` and `reading` handle safetensors, `manifest` the JSON beside them, `channel` a process. Nothing that comes in
is trusted.
"""
