/* Waits for ever, without a C library. Built by bench/start.go like stamp.c. */

void _start(void)
{
	for (;;) {
#if defined(__x86_64__)
		long r;
		__asm__ volatile("syscall" : "=a"(r) : "a"(34L) : "rcx", "r11", "memory"); /* pause */
#elif defined(__aarch64__)
		register long x8 __asm__("x8") = 73, x0 __asm__("x0") = 0, x1 __asm__("x1") = 0, x2 __asm__("x2") = 0, x3 __asm__("x3") = 0;
		__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory"); /* ppoll */
#endif
	}
}
