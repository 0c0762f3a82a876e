"""What is said: the verdict, as text, JSON, JUnit and a page."""
