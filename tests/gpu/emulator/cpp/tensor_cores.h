// The tensor cores' instructions, as the lanes of a warp see them.

static void multiply_tile(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const unsigned lane = emulator::lane(), g = lane / 4, t = lane % 4;
    for (unsigned other = 0; other < 4; other++) {
        u32 of_a[4], of_b[2][2];
        for (int i = 0; i < 4; i++) of_a[i] = emulator::exchange(a[i], 4 * g + other);
        for (unsigned column = 0; column < 2; column++) {
            of_b[column][0] = emulator::exchange(b0, 4 * (2 * t + column) + other);
            of_b[column][1] = emulator::exchange(b1, 4 * (2 * t + column) + other);
        }
        for (unsigned i = 0; i < 4; i++) {
            const u32 *of_column = of_b[i % 2], first = of_a[i / 2], second = of_a[2 + i / 2];
            c[i] += first_of(first) * first_of(of_column[0]) + second_of(first) * second_of(of_column[0]) + first_of(second) * first_of(of_column[1]) +
                    second_of(second) * second_of(of_column[1]);
        }
    }
}

static void load_transposed(u32& b0, u32& b1, const real* row) {
    const unsigned lane = emulator::lane(), g = lane / 4, t = lane % 4;
    u32 out[2];
    for (unsigned block = 0; block < 2; block++) {
        const real* first = emulator::exchange(row, block * 8 + 2 * t);
        const real* second = emulator::exchange(row, block * 8 + 2 * t + 1);
        out[block] = (u32)first[g].bits | (u32)second[g].bits << 16;
    }
    b0 = out[0];
    b1 = out[1];
}
