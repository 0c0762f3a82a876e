"""What is asked: the inputs, and what each of them has to be answered with."""
