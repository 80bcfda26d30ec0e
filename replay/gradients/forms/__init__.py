"""Forms that per-example gradients are kept in, and their inner products.

``form`` says what a form must know and has the dense way that is right for all of them. Each other
class lies in a file of its own with the products that it has for less. ``products`` adds them up.
"""
