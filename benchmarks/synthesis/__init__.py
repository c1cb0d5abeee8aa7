"""How fast SQL is made from templates and executed, and whether memory stays where it is."""
