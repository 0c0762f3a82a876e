"""Who is to blame: one peer on one case, tap by tap, and the name of the defect."""
