"""The denoiser. A stack's way through it, each module knowing only those below it:

    job            the folder, the time, the record         report, budget, device, interrupt,
                                                            resume, together
    pipeline       one stack from file to file; the only place where stages meet
    stack_io       file -> Stack                            stack, tiff_reader, mha_reader
    normalise      counts -> about 0..1, and back
    checkpoint     weights -> a fresh network               architectures
    adapt          the network learns this stack            blindspot, odd_even, patches, judge
    factor_denoiser factors through their network
    lowrank        the whole stack as a sum of factors      components, wide_courses, basis,
                                                            background, frames
    inference      overlapping windows -> blended frames    tiling, blending
    result_writer  frames -> file, page by page

Every number stands in `config`.
"""

import os

# Read when numpy is loaded. Blocks of tissue are worked on one to a core (`parallel`), and numpy's
# matrix library would start threads of its own in each, which mostly wait: on two cores components
# took up to 1.5 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
