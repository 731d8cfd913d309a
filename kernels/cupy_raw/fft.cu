// Convolution by Fourier transforms of tiles: what a window costs grows with the logarithm of its size.
//
//     w  --transform_windows-->  spectra of the windows, conjugated
//     x  --transform_tiles---->  spectra of the tiles           (not written where each is needed once, -DALONE=1)
//     both  --convolve_tiles-->  y: products summed in registers, transformed back, bias, activation
//
//     tile of 64 x 64 numbers of x      With a window of R x S taps the first 65 - R rows and 65 - S columns of a
//     +---------------+-------+         transformed product are outputs (overlap-save); the others wrapped around the
//     | outputs       |       |         tile and are dropped. A window of more than about 40 rows or columns is cut into
//     |               |       |         blocks of 32 and the tiles advance by 32 outputs: then block b of the window
//     +---------------+       |         needs, for tile t, exactly the spectrum of tile t + b. Every spectrum is computed
//     | R - 1 rows more       |         once and used for all blocks and all filters of its channel.
//     +-----------------------+
//
// Two tiles at once: their convolutions with one real window are the real and the imaginary part of one complex
// convolution. They are the same place of two images or, of a single image, of its upper and its lower half.
//
// Who computes what: one block of 256 threads a pair of tiles; a thread has 16 of its 4,096 numbers in registers, as two
// columns (or rows) of 8. A transform of 64 numbers is two of 8 with factors between them:
//
//     numbers 8 i + g, i = 0..7  --8-point, times root^(g k)-->  numbers 8 k + i  --8-point-->  frequencies k + 8 i
//
// in place, so that frequencies stay in the order in which they come, which is the same for x and w; the way back takes
// the same steps in reverse. Real and imaginary parts are exchanged, and a forward transform is a transform back.
// Between steps the block hands its numbers round through one plane of shared memory, first the real parts, then the
// imaginary ones: 16.6 KB for float, so registers limit how many blocks an SM holds.
// Bank conflicts: none. Lanes are neighbours along a row, or along a column of a plane whose rows are 65 words apart.
// Global memory: x is read along rows, spectra are stored with lanes side by side, 64 numbers of a column each.
// What it costs: two transforms for each pair of tiles, about 2 x 4,096 x 60 instructions for 2 (65 - R)(65 - S)
// outputs: some 250 for an output of a 21 x 21 window that takes 441 multiply-adds directly.
// Rounding: relative to the largest output of a tile, not to each output (accuracy.py). NaN and infinity in x reach all
// outputs of its pair of tiles.
// Limits: one channel for each filter, stride 1. Never run on hardware.
// Sources: Stockham, High-speed convolution and correlation, 1966; Cooley, Lewis and Welch, The fast Fourier transform
// algorithm, 1970 (two real signals in one); Volkov and Kazian, Fitting FFT onto the G80 architecture, 2008 (numbers in
// registers, parts exchanged one after the other); Wefers, Partitioned convolution algorithms, 2015 (spectra reused).
//
// Compiled with the constants of storage.cuh and epilogue.cuh, -DWIDE, -DALONE and -DROOTS, the 64th roots of unity's
// powers g k in braces.

#include "epilogue.cuh"

constexpr int TILE = 64, RADIX = 8, THREADS = 256;
constexpr int TURNS = TILE * TILE / RADIX / THREADS;  // transforms of 8 numbers that a thread does in each step
constexpr int PITCH = TILE + 1;                       // words from one row of the plane to the next

// What the registers are to allow: with more, the compiler spills.
constexpr int BLOCKS_PER_SM = sizeof(Accumulator) == 8 ? 1 : 2;

struct alignas(2 * sizeof(Accumulator)) Complex { Accumulator re, im; };

__constant__ Complex roots[RADIX][RADIX] = ROOTS;

// How y is cut into tiles and the window into blocks; fft.py fills it.
struct Tiles {
    int64 first_plane;             // of this slice: an image (of a pair) and a channel
    int R, S, dilation_h, dilation_w;
    int outputs_h, outputs_w;      // of one tile
    int down, across;              // pairs of tiles in this slice: rows of them, and in a row
    int first_down;                // of this slice
    int second_n, second_down;     // how many images, or rows of tiles, the second tile of a pair is behind the first
    int block_r, block_s;          // taps of a block of the window
    int blocks_r, blocks_s;
};

struct Place { int n, down, across; };  // of a tile

// Which numbers of the tile a thread holds: `line` and `group` are the thread's, i counts its eight.
enum Hold { ROWS_APART, ROWS_TOGETHER, COLUMNS_APART, COLUMNS_TOGETHER };

__device__ __forceinline__ int line() { return threadIdx.x % TILE; }
__device__ __forceinline__ int group(int turn) { return threadIdx.x / TILE + turn * (THREADS / TILE); }

template <Hold HOLD> __device__ __forceinline__ int word(int turn, int i)
{
    const int apart = i * RADIX + group(turn), together = group(turn) * RADIX + i;
    if constexpr (HOLD == ROWS_APART) return apart * PITCH + line();
    if constexpr (HOLD == ROWS_TOGETHER) return together * PITCH + line();
    if constexpr (HOLD == COLUMNS_APART) return line() * PITCH + apart;
    return line() * PITCH + together;
}

using Numbers = Complex[TURNS][RADIX];

__device__ __forceinline__ Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ __forceinline__ Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ __forceinline__ Complex operator*(Complex a, Complex b)
{
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ __forceinline__ Complex turned(Complex a) { return {a.im, -a.re}; }  // times -i
__device__ __forceinline__ Complex exchanged(Complex a) { return {a.im, a.re}; }

__device__ __forceinline__ void transform4(Complex& x0, Complex& x1, Complex& x2, Complex& x3, const Complex (&a)[4])
{
    const Complex sum = a[0] + a[2], difference = a[0] - a[2], others = a[1] + a[3], turn = turned(a[1] - a[3]);
    x0 = sum + others;
    x1 = difference + turn;
    x2 = sum - others;
    x3 = difference - turn;
}

__device__ __forceinline__ void transform8(Complex (&x)[RADIX])
{
    constexpr Accumulator half = 0.70710678118654752440;  // cosine and sine of 45 degrees
    const Complex evens[4] = {x[0] + x[4], x[1] + x[5], x[2] + x[6], x[3] + x[7]};
    const Complex once = x[1] - x[5], thrice = x[3] - x[7];
    const Complex odds[4] = {x[0] - x[4], {(once.re + once.im) * half, (once.im - once.re) * half}, turned(x[2] - x[6]),
                             {(thrice.im - thrice.re) * half, -(thrice.re + thrice.im) * half}};
    transform4(x[0], x[2], x[4], x[6], evens);
    transform4(x[1], x[3], x[5], x[7], odds);
}

__device__ __forceinline__ void transform_all(Numbers& x)
{
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) transform8(x[turn]);
}

__device__ __forceinline__ void times_roots(Numbers& x)
{
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 1; i < RADIX; ++i) x[turn][i] = x[turn][i] * roots[group(turn)][i];
}

template <Hold FROM, Hold TO, Accumulator Complex::*PART>
__device__ __forceinline__ void hand_round_part(Numbers& x, Accumulator* plane)
{
    __syncthreads();
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 0; i < RADIX; ++i) plane[word<FROM>(turn, i)] = x[turn][i].*PART;
    __syncthreads();
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 0; i < RADIX; ++i) x[turn][i].*PART = plane[word<TO>(turn, i)];
}

template <Hold FROM, Hold TO> __device__ __forceinline__ void hand_round(Numbers& x, Accumulator* plane)
{
    hand_round_part<FROM, TO, &Complex::re>(x, plane);
    hand_round_part<FROM, TO, &Complex::im>(x, plane);
}

// From ROWS_APART to COLUMNS_TOGETHER.
__device__ __forceinline__ void transform(Numbers& x, Accumulator* plane)
{
    transform_all(x);
    times_roots(x);
    hand_round<ROWS_APART, ROWS_TOGETHER>(x, plane);
    transform_all(x);
    hand_round<ROWS_TOGETHER, COLUMNS_APART>(x, plane);
    transform_all(x);
    times_roots(x);
    hand_round<COLUMNS_APART, COLUMNS_TOGETHER>(x, plane);
    transform_all(x);
}

// From COLUMNS_TOGETHER to ROWS_APART, of numbers whose parts are exchanged, and so are the results'.
__device__ __forceinline__ void transform_back(Numbers& x, Accumulator* plane)
{
    transform_all(x);
    times_roots(x);
    hand_round<COLUMNS_TOGETHER, COLUMNS_APART>(x, plane);
    transform_all(x);
    hand_round<COLUMNS_APART, ROWS_TOGETHER>(x, plane);
    transform_all(x);
    times_roots(x);
    hand_round<ROWS_TOGETHER, ROWS_APART>(x, plane);
    transform_all(x);
}

// Where a thread's number of a spectrum lies: lanes side by side.
__device__ __forceinline__ int place_in_spectrum(int turn, int i) { return (group(turn) * RADIX + i) * TILE + line(); }

__device__ __forceinline__ void write_spectrum(Complex* spectrum, const Numbers& x)
{
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 0; i < RADIX; ++i) spectrum[place_in_spectrum(turn, i)] = x[turn][i];
}

__device__ __forceinline__ Place second(const Tiles& tiles, Place first)
{
    return {first.n + tiles.second_n, first.down + tiles.second_down, first.across};
}

// One column of a tile: as many of its rows as lie in the image are loaded, the others are zeros.
struct Column {
    const Element* top;  // of the tile, maybe above the image
    Offset down;         // elements to the next row
    int h, height;       // of the tile's first row, and of the image; zero beside it
};

__device__ __forceinline__ Column column_of(const Element* __restrict__ x, const Problem& problem, const Tiles& tiles,
                                            Place place, int c)
{
    const int h = place.down * tiles.outputs_h - problem.top;
    const int w = place.across * tiles.outputs_w - problem.left + line();
    const bool inside = place.n < problem.N && (unsigned)w < problem.W;
    return {x + offset(problem.x, place.n, c, h, w), (Offset)problem.x.h, h, inside ? problem.H : 0};
}

__device__ __forceinline__ Accumulator number(const Column& column, int row)
{
    const bool inside = (unsigned)(column.h + row) < column.height;
    return inside ? widened(column.top[row * column.down]) : Accumulator(0);
}

__device__ __forceinline__ void load_tiles(Numbers& numbers, const Element* __restrict__ x, const Problem& problem,
                                           const Tiles& tiles, Place place, int c)
{
    const bool paired = tiles.second_n | tiles.second_down;
    const Column first = column_of(x, problem, tiles, place, c);
    Column other = column_of(x, problem, tiles, second(tiles, place), c);
    if (!paired) other.height = 0;
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 0; i < RADIX; ++i) {
            const int row = i * RADIX + group(turn);
            numbers[turn][i] = {number(first, row), number(other, row)};
        }
}

// grid: over filters and blocks of the window, one each.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
transform_windows(const Element* __restrict__ w, Complex* __restrict__ spectra, Problem problem, Tiles tiles)
{
    __shared__ Accumulator plane[TILE * PITCH];
    int rest = blockIdx.x;
    const int block_s = rest % tiles.blocks_s; rest /= tiles.blocks_s;
    const int block_r = rest % tiles.blocks_r, k = rest / tiles.blocks_r;
    const int rows = min(tiles.block_r, tiles.R - block_r * tiles.block_r);
    const int columns = min(tiles.block_s, tiles.S - block_s * tiles.block_s);

    Numbers numbers;
    const int s = line() / tiles.dilation_w;
    const bool on_column = line() % tiles.dilation_w == 0 && s < columns;
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 0; i < RADIX; ++i) {
            const int row = i * RADIX + group(turn), r = row / tiles.dilation_h;
            const bool is_tap = on_column && row % tiles.dilation_h == 0 && r < rows;
            const Offset tap = offset(problem.w, k, 0, block_r * tiles.block_r + r, block_s * tiles.block_s + s);
            numbers[turn][i] = {is_tap ? widened(w[tap]) : Accumulator(0), Accumulator(0)};
        }
    transform(numbers, plane);
    constexpr Accumulator scale = Accumulator(1) / (TILE * TILE);
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 0; i < RADIX; ++i)  // conjugated: a correlation
            numbers[turn][i] = {numbers[turn][i].re * scale, numbers[turn][i].im * -scale};
    write_spectrum(spectra + (int64)blockIdx.x * (TILE * TILE), numbers);
}

// How many spectra the slice has of one plane: those of its tiles, and of the tiles that further blocks reach.
__device__ __forceinline__ int spectra_down(const Tiles& tiles) { return tiles.down + tiles.blocks_r - 1; }
__device__ __forceinline__ int spectra_across(const Tiles& tiles) { return tiles.across + tiles.blocks_s - 1; }

// grid: over the slice's planes and their spectra, one each.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
transform_tiles(const Element* __restrict__ x, Complex* __restrict__ spectra, Problem problem, Tiles tiles)
{
    __shared__ Accumulator plane[TILE * PITCH];
    int rest = blockIdx.x;
    const int across = rest % spectra_across(tiles); rest /= spectra_across(tiles);
    const int down = rest % spectra_down(tiles) + tiles.first_down;
    const int64 whole = tiles.first_plane + rest / spectra_down(tiles);

    Numbers numbers;
    load_tiles(numbers, x, problem, tiles, {(int)(whole / problem.C), down, across}, whole % problem.C);
    transform(numbers, plane);
    write_spectrum(spectra + (int64)blockIdx.x * (TILE * TILE), numbers);
}

// sums += spectrum * window
__device__ __forceinline__ void add_product(Numbers& sums, const Complex* __restrict__ spectrum,
                                            const Complex* __restrict__ window)
{
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 0; i < RADIX; ++i) {
            const int at = place_in_spectrum(turn, i);
            sums[turn][i] = sums[turn][i] + spectrum[at] * window[at];
        }
}

// One column of a tile's outputs: epilogue.cuh's store with its offsets computed once.
template <Accumulator Complex::*PART>
__device__ __forceinline__ void store_column(const Numbers& sums, const Problem& problem, const Tiles& tiles,
                                             const Output& output, Place place, int k)
{
    const int q = place.across * tiles.outputs_w + line(), p = place.down * tiles.outputs_h;
    if (place.n >= problem.N || line() >= tiles.outputs_w || q >= problem.Q) return;
    const int rows = min(tiles.outputs_h, problem.P - p);
    const Accumulator bias = output.bias ? widened(output.bias[k * (Offset)problem.bias]) : Accumulator(0);
    Element* const y = output.y + offset(problem.y, place.n, k, p, q);
    const Element* const residual = output.residual + offset(problem.residual, place.n, k, p, q);
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 0; i < RADIX; ++i) {
            const int row = i * RADIX + group(turn);
            if (row >= rows) continue;
            Accumulator sum = sums[turn][i].*PART + bias;
            if (output.residual) sum += widened(residual[row * (Offset)problem.residual.h]);
            round_to(y[row * (Offset)problem.y.h], activated(sum, problem.slope));
        }
}

// grid: over the slice's planes, their filters and pairs of tiles, one each. spectra: of transform_tiles, unless ALONE.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
convolve_tiles(const Element* __restrict__ x, const Complex* __restrict__ spectra, const Complex* __restrict__ windows,
               Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual,
               Problem problem, Tiles tiles)
{
    __shared__ Accumulator plane[TILE * PITCH];
    int rest = blockIdx.x;
    const int across = rest % tiles.across; rest /= tiles.across;
    const int row = rest % tiles.down; rest /= tiles.down;
    const int64 in_slice = rest / problem.Kg, whole = tiles.first_plane + in_slice;
    const int c = whole % problem.C, k = c * problem.Kg + rest % problem.Kg;
    const Place place = {(int)(whole / problem.C), tiles.first_down + row, across};

    Numbers sums;
    if constexpr (ALONE) {
        load_tiles(sums, x, problem, tiles, place, c);
        transform(sums, plane);
        windows += (int64)k * (TILE * TILE);
        #pragma unroll
        for (int turn = 0; turn < TURNS; ++turn)
            #pragma unroll
            for (int i = 0; i < RADIX; ++i)
                sums[turn][i] = sums[turn][i] * windows[place_in_spectrum(turn, i)];
    } else {
        #pragma unroll
        for (int turn = 0; turn < TURNS; ++turn)
            #pragma unroll
            for (int i = 0; i < RADIX; ++i) sums[turn][i] = {0, 0};
        windows += (int64)k * tiles.blocks_r * tiles.blocks_s * (TILE * TILE);
        for (int block_r = 0; block_r < tiles.blocks_r; ++block_r) {
            const int64 line = in_slice * spectra_down(tiles) + row + block_r;
            const Complex* spectrum = spectra + (line * spectra_across(tiles) + across) * (TILE * TILE);
            for (int block_s = 0; block_s < tiles.blocks_s; ++block_s) {
                add_product(sums, spectrum, windows);
                spectrum += TILE * TILE;
                windows += TILE * TILE;
            }
        }
    }
    #pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        #pragma unroll
        for (int i = 0; i < RADIX; ++i) sums[turn][i] = exchanged(sums[turn][i]);
    transform_back(sums, plane);

    const Output output = {y, bias, residual};
    store_column<&Complex::im>(sums, problem, tiles, output, place, k);
    if (tiles.second_n | tiles.second_down)
        store_column<&Complex::re>(sums, problem, tiles, output, second(tiles, place), k);
}
