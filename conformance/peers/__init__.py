"""Who is asked: implementations under judgement. Only `torch/` may import a framework."""
