"""A machine that executes PTX: no GPU, no driver, no compiler.

``parse`` reads the text of a kernel, ``registers`` binds its operands to arrays of one value per thread, ``instructions``
and what it lists say what an instruction does, ``memory`` checks every access, and ``launch`` runs the threads. What it
does not know it refuses, by the instruction's name.
"""
