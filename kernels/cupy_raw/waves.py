"""How the blocks of a matrix product fill a GPU, wave by wave; cut.py chooses by it.

    SMs * blocks of each = 8 slots, 21 tiles, the last 5 split in 3 parts each:

    wave 1   0  1  2  3  4  5  6  7        whole tiles: they fill waves
    wave 2   8  9 10 11 12 13 14 15
    rest    16 17 18 19 20 16 17 18        a third as long: first thirds, second thirds ...
            19 20 16 17 18 19 20           ... and what they leave is added in their order: by a kernel of its own
                                           (implicit_gemm.cu), or by the last of each tile (last_split.cuh)

Without, the five tiles of the last wave take as long as eight. Where there is no full wave, all tiles are split, or
those that the multiprocessors cannot share evenly.
Source: the hybrid of whole tiles and split ones of Osama et al., Stream-K: work-centric parallel decomposition for
dense matrix-matrix multiplication on the GPU, PPoPP 2023; here all parts of a tile are equal, which keeps its sums in
order.
"""

from ..launching import ceil_div

FULL = 0.8  # of the slots of the last wave, or of the multiprocessors' time if all blocks take equally long
# What full waves may cost: so many times the shortest predicted time, and the launch that adds splits, if any. Where it
# was measured, the model is off by a factor of 1.07 to 1.24 in the mean (gpu_cost.json): it knows no better.
DEARER = 1.24


def last_wave(blocks, slots):
    """Of the slots, how many its last wave takes; of no blocks all."""
    return ((blocks - 1) % slots + 1) / slots


def busy(blocks, sms):
    """Of the multiprocessors' time until the last is done, what blocks take, if all take equally long."""
    return blocks / (ceil_div(blocks, sms) * sms)
