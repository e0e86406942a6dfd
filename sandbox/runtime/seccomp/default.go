package seccomp

import (
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// allowed are the system calls that need no capability and no look at their
// arguments: the same set that Docker's default profile (moby/profiles v0.3.0)
// allows, so that what runs in Docker runs here. ioctl is not among them: its rules
// are below.
const allowed = `
	accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown clock_adjtime
	clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3
	epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
	eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod
	fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr
	fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list
	get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername
	getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid
	getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init
	inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
	ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr
	link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise
	map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
	mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal
	msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat
	openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl
	pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pwrite64 pwritev pwritev2 read readahead readlink
	readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat
	renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
	rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
	sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
	sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
	sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
	setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt
	setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice
	stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
	timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times
	tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write
	writev
`

// allowed32 are the names that only 32-bit architectures have, of the same set. One
// is missing: socketcall hides the family of a socket behind a pointer, and every
// libc knows socket(2) since 2016.
const allowed32 = `
	_llseek _newselect arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush chown32 clock_adjtime64
	clock_getres_time64 clock_gettime64 clock_nanosleep_time64 fadvise64_64 fchown32 fcntl64 fstat64 fstatat64
	fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32 getgid32 getgroups32 getresgid32 getresuid32 getuid32
	io_pgetevents_time64 ipc lchown32 lstat64 mmap2 mq_timedreceive_time64 mq_timedsend_time64 ppoll_time64
	pselect6_time64 recv recvmmsg_time64 rt_sigtimedwait_time64 sched_rr_get_interval_time64 semtimedop_time64 send
	sendfile64 set_tls setfsgid32 setfsuid32 setgid32 setgroups32 setregid32 setresgid32 setresuid32 setreuid32
	setuid32 sigprocmask sigreturn stat64 statfs64 sync_file_range2 timer_gettime64 timer_settime64 timerfd_gettime64
	timerfd_settime64 truncate64 ugetrlimit utimensat_time64 waitpid
`

var allowedNames = sync.OnceValue(func() []string { return strings.Fields(allowed) })

// withCapability are system calls that are allowed to those who hold the capability.
func withCapability() []capCalls {
	return []capCalls{
		{"CAP_DAC_READ_SEARCH", "open_by_handle_at"},
		{"CAP_SYS_ADMIN", "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr " +
			"lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd " +
			"setdomainname sethostname setns syslog umount2 unshare"},
		{"CAP_SYS_BOOT", "reboot"},
		{"CAP_SYS_CHROOT", "chroot"},
		{"CAP_SYS_MODULE", "delete_module init_module finit_module"},
		{"CAP_SYS_PACCT", "acct"},
		{"CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"},
		{"CAP_SYS_RAWIO", "iopl ioperm"},
		{"CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"},
		{"CAP_SYS_TTY_CONFIG", "vhangup"},
		{"CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"},
		{"CAP_SYSLOG", "syslog"},
		{"CAP_BPF", "bpf"},
		{"CAP_PERFMON", "perf_event_open"},
	}
}

type capCalls struct{ capability, names string }

// namespaceFlags are the CLONE_NEW* bits that clone(2) takes.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// families are the socket domains that may be made, beside the first three
// (unspecified, unix, inet). Missing on purpose: AF_ALG (the kernel's crypto
// interface, copy.fail), AF_VSOCK (reaches the hypervisor past every network namespace
// before Linux 7.0), and what newer kernels have no more.
func families() []uint64 {
	return []uint64{
		unix.AF_INET6, unix.AF_NETLINK, unix.AF_BRIDGE, unix.AF_ATMPVC, unix.AF_X25, unix.AF_NETBEUI,
		unix.AF_SECURITY, unix.AF_KEY, unix.AF_PACKET, unix.AF_ASH, unix.AF_RDS, unix.AF_SNA,
		unix.AF_PPPOX, unix.AF_LLC, unix.AF_IB, unix.AF_MPLS, unix.AF_CAN, unix.AF_TIPC, unix.AF_BLUETOOTH,
		unix.AF_IUCV, unix.AF_RXRPC, unix.AF_PHONET, unix.AF_IEEE802154, unix.AF_NFC, unix.AF_KCM,
		unix.AF_QIPCRTR, unix.AF_SMC, unix.AF_XDP, unix.AF_MCTP,
	}
}

// personalities are the execution domains that change no security property:
// PER_LINUX, PER_LINUX32, both with UNAME26, and the query.
func personalities() []uint64 { return []uint64{0, 8, 0x20000, 0x20008, 0xffffffff} }

// Default is the allow-list policy for a process with the given capabilities
// ("CAP_CHOWN"). What is not listed fails with EPERM, what is newer than the list with
// ENOSYS. Other architectures than the machine's own are killed, unless named.
//
// It is that of Docker with one rule more: no ioctl puts bytes into the input of a
// terminal (TIOCSTI, TIOCLINUX), by which a process types into the shell that called
// it. The kernel looks at 32 bits of the request, so the rule must (CVE-2019-10063).
func Default(caps []string, archs ...specs.Arch) *specs.LinuxSeccomp {
	eperm, enosys := uint(unix.EPERM), uint(unix.ENOSYS)
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &eperm, Architectures: archs}
	add := func(action specs.LinuxSeccompAction, errno *uint, args []specs.LinuxSeccompArg, names ...string) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: names, Action: action, ErrnoRet: errno, Args: args})
	}
	arg := func(index uint, op specs.LinuxSeccompOperator, value, second uint64) []specs.LinuxSeccompArg {
		return []specs.LinuxSeccompArg{{Index: index, Op: op, Value: value, ValueTwo: second}}
	}
	add(specs.ActAllow, nil, nil, slices.Concat(allowedNames(), []string{"arch_prctl", "modify_ldt", "ptrace", "process_vm_readv", "process_vm_writev"})...)
	if len(archs) > 0 {
		add(specs.ActAllow, nil, nil, strings.Fields(allowed32)...)
	}
	for _, c := range withCapability() {
		if slices.Contains(caps, c.capability) {
			add(specs.ActAllow, nil, nil, strings.Fields(c.names)...)
		}
	}
	add(specs.ActAllow, nil, arg(0, specs.OpLessThan, unix.AF_INET+1, 0), "socket")
	for _, f := range families() {
		add(specs.ActAllow, nil, arg(0, specs.OpEqualTo, f, 0), "socket")
	}
	for _, v := range personalities() {
		add(specs.ActAllow, nil, arg(0, specs.OpEqualTo, v, 0), "personality")
	}
	for _, request := range []uint64{unix.TIOCSTI, unix.TIOCLINUX} {
		add(specs.ActErrno, &eperm, arg(1, specs.OpMaskedEqual, 1<<32-1, request), "ioctl")
	}
	add(specs.ActAllow, nil, arg(1, specs.OpGreaterEqual, 0, 0), "ioctl")
	if !slices.Contains(caps, "CAP_SYS_ADMIN") {
		add(specs.ActAllow, nil, arg(0, specs.OpMaskedEqual, namespaceFlags, 0), "clone")
		// Flags of clone3 lie behind a pointer, where a filter cannot look; libc falls back to clone on ENOSYS only.
		add(specs.ActErrno, &enosys, nil, "clone3")
	}
	return p
}
