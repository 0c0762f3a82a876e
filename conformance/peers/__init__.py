"""Who is asked: the implementations under judgement. Only `torch/` may import a framework."""
