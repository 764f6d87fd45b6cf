# cython: freethreading_compatible=True
"""x"""
def hello():
    return 1
