/* Preloaded, lets a program see a lesser x86-64 processor than it runs on: Linux makes `cpuid` fault (arch_prctl,
   CPUID faulting), and the handler answers in its place, as the one that PROCESSOR names. Threads and children inherit it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define SET_CPUID 0x1012
#define BIT(n) (1u << (n))

/* AMX, and the floats of 16 bits that came with it or just before. */
static const unsigned AMX_7D = BIT(22) | BIT(23) | BIT(24) | BIT(25), AMX_71A = BIT(5) | BIT(21);
/* Leaf 7: AVX512F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS, VP2INTERSECT.
   Its subleaf 1: AVX-VNNI, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16, AVX10. */
static const unsigned AVX512_7B = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned AVX512_7C = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned AVX512_7D = BIT(2) | BIT(3) | BIT(8);
static const unsigned AVX512_71A = BIT(4) | BIT(23), AVX512_71D = BIT(4) | BIT(5) | BIT(10) | BIT(19);

static int hide_avx512;

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)regs[REG_RIP];
    if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) {
        signal(number, SIG_DFL); /* A fault of the program's own. */
        return;
    }
    unsigned leaf = regs[REG_RAX], part = regs[REG_RCX], a = leaf, b, c = part, d;
    syscall(SYS_arch_prctl, SET_CPUID, 1);
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    syscall(SYS_arch_prctl, SET_CPUID, 0);
    if (leaf == 7 && part == 0) {
        d &= ~AMX_7D;
        if (hide_avx512) b &= ~AVX512_7B, c &= ~AVX512_7C, d &= ~AVX512_7D;
    } else if (leaf == 7 && part == 1) {
        a &= ~AMX_71A;
        if (hide_avx512) a &= ~AVX512_71A, d &= ~AVX512_71D;
    }
    regs[REG_RAX] = a, regs[REG_RBX] = b, regs[REG_RCX] = c, regs[REG_RDX] = d;
    regs[REG_RIP] += 2;
}

typedef int (*Sigaction)(int, const struct sigaction *, struct sigaction *);

static Sigaction real_sigaction(void) { return (Sigaction)dlsym(RTLD_NEXT, "sigaction"); }

/* A program's own handler, such as Python's faulthandler, must not take the place of ours. */
int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
    if (number != SIGSEGV) return real_sigaction()(number, new, old);
    if (old) memset(old, 0, sizeof *old);
    return 0;
}

__attribute__((constructor)) static void start(void) {
    const char *processor = getenv("PROCESSOR");
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    hide_avx512 = processor && !strcmp(processor, "avx2");
    if (real_sigaction()(SIGSEGV, &action, NULL) || syscall(SYS_arch_prctl, SET_CPUID, 0)) {
        fprintf(stderr, "This processor or kernel does not let cpuid fault.\n");
        _exit(2);
    }
}
