#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <vector>

using emulator::Place;

Place threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum class State { Ready, AtBlockBarrier, AtWarpBarrier, Ended };

// A thread of the block. It is begun with makecontext, and from then on left and taken up with longjmp, which needs no system call.
struct Thread {
    State state;
    Place place;
    bool begun;
    ucontext_t context;
    jmp_buf at;
    std::vector<unsigned char> stack;
};

struct Kernel { unsigned threads; emulator::Call call; };

const std::size_t STACK_BYTES = 64 << 10;

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

std::vector<Thread> threads;
std::vector<uint64_t> exchanged;
unsigned char* shared;
ucontext_t first_scheduler;
jmp_buf scheduler;
unsigned current;
emulator::Call body;
void** arguments_of_body;

void enter() {
    body(arguments_of_body);
    threads[current].state = State::Ended;
    _longjmp(scheduler, 1);
}

void wait(State state) {
    threads[current].state = state;
    if (_setjmp(threads[current].at) == 0) _longjmp(scheduler, 1);
}

// Runs the current thread until it waits or ends.
void take_up() {
    Thread& thread = threads[current];
    if (_setjmp(scheduler) != 0) return;
    if (thread.begun) _longjmp(thread.at, 1);
    thread.begun = true;
    swapcontext(&first_scheduler, &thread.context);
}

// Lets those go on that wait for nobody any more. Returns whether there are some.
bool release(unsigned first, unsigned end, State barrier) {
    bool waiting = false;
    for (unsigned at = first; at < end; at++) {
        if (threads[at].state != barrier && threads[at].state != State::Ended) return false;
        waiting |= threads[at].state == barrier;
    }
    for (unsigned at = first; at < end; at++) {
        if (threads[at].state == barrier) threads[at].state = State::Ready;
    }
    return waiting;
}

const std::size_t SHARED_BYTES = 256 << 10, PAGE_BYTES = 64 << 10;

// Where a block's shared memory ends: behind it nobody may read or write.
unsigned char* end_of_shared() {
    static unsigned char* const begin = [] {
        void* pages = mmap(nullptr, SHARED_BYTES + PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED || mprotect(pages, SHARED_BYTES, PROT_READ | PROT_WRITE) != 0) abort();
        return (unsigned char*)pages;
    }();
    return begin + SHARED_BYTES;
}

// In which order a block's threads go on. What depends on it is a race, so blocks take turns.
enum class Schedule {
    // All warps from one barrier of a warp to the next.
    Together,
    // The first warp as far as it comes, then the next one.
    FirstWarpFirst,
    // The last thread of the last warp first.
    LastWarpFirst,
};

// Runs those of a warp that can go on. Returns whether there are some.
bool run_warp(unsigned first, unsigned end, bool backwards) {
    bool ran = false;
    for (unsigned turn = 0; turn < end - first; turn++) {
        const unsigned at = backwards ? end - 1 - turn : first + turn;
        if (threads[at].state != State::Ready) continue;
        current = at;
        threadIdx = threads[at].place;
        take_up();
        ran = true;
    }
    return ran;
}

// Runs a block to its end; false: its threads wait for each other at different barriers.
bool run_block(Schedule schedule) {
    const unsigned count = (unsigned)threads.size(), warps = (count + 31) / 32;
    const bool backwards = schedule == Schedule::LastWarpFirst;
    for (Thread& thread : threads) {
        thread.state = State::Ready;
        thread.begun = false;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, enter, 0);
    }
    for (;;) {
        bool went_on = false, ended = true;
        for (unsigned turn = 0; turn < warps; turn++) {
            const unsigned first = 32 * (backwards ? warps - 1 - turn : turn), end = first + 32 < count ? first + 32 : count;
            bool more;
            do {
                went_on |= run_warp(first, end, backwards);
                more = release(first, end, State::AtWarpBarrier);
                went_on |= more;
            } while (more && schedule != Schedule::Together);
        }
        for (const Thread& thread : threads) ended &= thread.state == State::Ended;
        if (ended) return true;
        went_on |= release(0, count, State::AtBlockBarrier);
        if (!went_on) return false;
    }
}

}  // namespace

namespace emulator {

void block_barrier() { wait(State::AtBlockBarrier); }
void warp_barrier() { wait(State::AtWarpBarrier); }
uint64_t* lanes() { return exchanged.data() + current / 32 * 32; }
unsigned lane() { return current % 32; }
unsigned char* dynamic_shared() { return shared; }

Registration::Registration(const char* precision, const char* name, unsigned threads, Call call) {
    kernels()[std::string(precision) + " " + name] = Kernel{threads, call};
}

}  // namespace emulator

// 0: done; 1: no such kernel; 2: it is made for blocks of another size; 3: threads wait for each other at different barriers.
extern "C" void emulator_link_kernels();

extern "C" int emulator_launch(const char* precision, const char* name, const unsigned* grid, unsigned threads_of_block, unsigned shared_bytes, void** arguments) {
    emulator_link_kernels();
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> guard(one_at_a_time);
    const auto kernel = kernels().find(std::string(precision) + " " + name);
    if (kernel == kernels().end()) return 1;
    if (kernel->second.threads != threads_of_block) return 2;
    body = kernel->second.call;
    arguments_of_body = arguments;
    threads.resize(threads_of_block);
    for (unsigned at = 0; at < threads_of_block; at++) {
        threads[at].place = Place{at, 0, 0};
        threads[at].stack.resize(STACK_BYTES);
    }
    shared = end_of_shared() - (shared_bytes + 15) / 16 * 16;
    exchanged.assign((threads_of_block + 31) / 32 * 32, 0);
    blockDim = Place{threads_of_block, 1, 1};
    gridDim = Place{grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                // Whatever a block before has left: kernels must not count on zeros.
                memset(shared, 0xa5, shared_bytes);
                blockIdx = Place{x, y, z};
                const unsigned turn = x + y + z + grid[0] + grid[1] + grid[2] + (unsigned)strlen(name);
                if (!run_block((Schedule)(turn % 3))) return 3;
            }
        }
    }
    return 0;
}
