"""A machine that executes PTX: no GPU, no driver, no compiler.

``parse`` reads the text of a kernel (``kernels``), ``registers`` binds its operands to arrays of one value per thread,
``instructions`` and the tables it has say what an instruction does, ``memory`` checks every access, ``races`` those of
several threads, and ``launch`` runs the threads. What the machine does not know it refuses, by the instruction's name.
"""
