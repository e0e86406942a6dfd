package attacks

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/launch/step"
)

// noID makes set*id leave the ids as they are.
func noID(s *step.Step) {
	s.Args = []step.Arg{step.I(^uint32(0)), step.I(^uint32(0)), step.I(^uint32(0))}
}

func chrootHere(s *step.Step) { *s = step.Call(s.Name, unix.SYS_CHROOT, step.S(".")) }

// besideRoot puts the container's root into a directory of the host. Over "/", where it
// is otherwise, ".." leads nowhere even before pivot_root.
func besideRoot(b *box) {
	dir := b.t.TempDir()
	edit(every("attach root", func(s *step.Step) { s.Args[3] = step.S(dir) }))(b)
}

// devices are attacks on the machine's disks, here a loop device over a file, and on
// what the container is allowed to use.
func devices() []attack {
	return []attack{
		{
			name: "disk by device node", what: "reads the machine's disk past its file system", mitigation: "the device cgroup",
			setup: disk, hostIDs: true, base: caps("MKNOD"), off: allDevices, needs: loops,
		},
		{
			name: "device node in the image", what: "an image brings the node for a disk", mitigation: "nodev on the root",
			setup: func(b *box) {
				must(b.t, unix.Mknod(b.layer+"/disk", unix.S_IFBLK|0o666, int(unix.Mkdev(7, uint32(loop(b))))))
				b.attack("device", "/disk")
				b.leaks()
			},
			hostIDs: true, base: allDevices, off: clearAttr("attach root", unix.MOUNT_ATTR_NODEV), needs: loops,
		},
		{
			name: "devices.allow", what: "gives itself every device in the cgroup file system", mitigation: "cgroups are read-only inside",
			setup: run("write", "a", "/sys/fs/cgroup/devices/devices.allow"), hostIDs: true, base: caps("SYS_ADMIN"),
			off: writableCgroup("devices"), needs: cgroupV1,
		},
		{
			name: "raise the memory limit", what: "writes its own limit in the cgroup file system", mitigation: "cgroups are read-only inside",
			setup: func(b *box) {
				limit := int64(64 << 20)
				b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
				b.attack("write", "67108864", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max")
			},
			hostIDs: true, off: writableCgroup("memory"),
		},
		{
			name: "null device of the host", what: "changes the mode of the host's /dev/null by the descriptor it got as standard input", mitigation: "a null device of its own",
			setup: func(b *box) {
				b.attack("fchmod")
				b.judge = func(result) bool { return b.Stdin != nil && modeOf(b, b.Stdin) == 0 }
			},
			hostIDs: true,
			off: func(b *box) {
				dir := b.t.TempDir()
				must(b.t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
				b.t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
				must(b.t, unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
				f, err := os.OpenFile(dir+"/null", os.O_RDWR, 0)
				must(b.t, err)
				b.t.Cleanup(func() { f.Close() })
				b.Stdin = f
			},
		},
	}
}

func modeOf(b *box, f *os.File) os.FileMode {
	info, err := f.Stat()
	must(b.t, err)
	return info.Mode().Perm()
}

func disk(b *box) {
	b.attack("disk", strconv.Itoa(loop(b)))
	b.leaks()
}

func loops() string {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return "the machine has no loop devices"
	}
	return ""
}

// loop makes a block device of a file with the token, and returns its minor number.
func loop(b *box) int {
	image := filepath.Join(b.host, "disk")
	must(b.t, os.WriteFile(image, append([]byte(b.token), make([]byte, 1<<16)...), 0o600))
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	must(b.t, err)
	defer file.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	must(b.t, err)
	defer ctl.Close()
	minor := -1
	eventually(2*time.Second, func() bool { // others may take the free one first
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		must(b.t, err)
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		must(b.t, err)
		if unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(file.Fd())) != nil {
			dev.Close()
			return false
		}
		minor = n
		b.t.Cleanup(func() {
			if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
				b.t.Errorf("free loop device: %v", err)
			}
			dev.Close()
		})
		return true
	})
	if minor < 0 {
		b.t.Fatal("no loop device is free")
	}
	return minor
}

// namespaces are attacks on what the host has and the container must not see.
func namespaces() []attack {
	return []attack{
		{
			name: "kill a process of the host", what: "signals a process by its number", mitigation: "the pid namespace",
			setup: victimKilled, hostIDs: true, off: share(specs.PIDNamespace),
		},
		{
			name: "kill the monitor", what: "kills the process that watches the container", mitigation: "the pid namespace",
			setup: monitorKilled, hostIDs: true, off: share(specs.PIDNamespace),
		},
		{
			name: "processes of the host", what: "reads the command lines of others, often with secrets", mitigation: "the pid namespace",
			setup: func(b *box) { victim(b); b.attack("pids"); b.leaks() }, hostIDs: true, off: share(specs.PIDNamespace),
		},
		{
			name: "host name", what: "renames the host", mitigation: "the UTS namespace",
			setup: func(b *box) {
				b.attack("hostname", b.token)
				b.judge = func(result) bool { name, err := os.Hostname(); must(b.t, err); return name == b.token }
			},
			hostIDs: true, base: all(caps("SYS_ADMIN"), allow("sethostname")), off: share(specs.UTSNamespace),
		},
		{
			name: "shared memory", what: "attaches System V shared memory of the host", mitigation: "the IPC namespace",
			setup: sharedMemory, hostIDs: true, off: share(specs.IPCNamespace),
		},
		{
			name: "message queue", what: "reads a POSIX message queue of the host", mitigation: "the IPC namespace",
			setup: messageQueue, hostIDs: true, off: share(specs.IPCNamespace),
		},
		{
			name: "abstract socket", what: "connects to an abstract Unix socket of the host, as containerd-shim had (CVE-2020-15257)", mitigation: "the network namespace",
			setup: func(b *box) { serve(b, "unix", "@naru-attack-"+b.ID) }, off: share(specs.NetworkNamespace),
		},
		{
			name: "service on the loopback", what: "connects to what listens on 127.0.0.1 of the host only", mitigation: "the network namespace",
			setup: func(b *box) { serve(b, "tcp", "127.0.0.1:0") }, off: share(specs.NetworkNamespace),
		},
		{
			name: "metadata service", what: "asks 169.254.170.2 for the machine's credentials", mitigation: "the network namespace",
			setup: func(b *box) { serve(b, "tcp", "169.254.170.2:0") }, off: share(specs.NetworkNamespace), needs: linkLocal,
		},
		{
			name: "names of cgroups", what: "learns how the host names and nests its containers", mitigation: "the cgroup namespace",
			setup: func(b *box) {
				b.attack("cat", "/proc/self/cgroup")
				b.judge = func(r result) bool { return strings.Contains(r.out, b.ID) }
			},
			hostIDs: true, off: share(specs.CgroupNamespace), // a user namespace may not mount cgroup2 of another
		},
	}
}

// sameIDs takes the user namespace away.
func sameIDs(b *box) {
	share(specs.UserNamespace)(b)
	b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = nil, nil
}

// linkLocal gives the loopback the address of metadata services.
func linkLocal() string {
	if out, err := exec.Command("ip", "address", "replace", "169.254.170.2/32", "dev", "lo").CombinedOutput(); err != nil {
		return "cannot add an address to lo: " + string(out)
	}
	return ""
}

// victim is a process of the host with the token in its command line.
func victim(b *box) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "attack", "sleep", "60", b.token)
	must(b.t, cmd.Start())
	b.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func victimKilled(b *box) {
	cmd := victim(b)
	b.attack("kill", strconv.Itoa(cmd.Process.Pid))
	b.judge = func(r result) bool {
		state, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/stat")
		must(b.t, err) // it is our child: a zombie at worst
		_, after, _ := strings.Cut(string(state), ") ")
		return strings.HasPrefix(after, "Z") || r.code == worked && eventually(time.Second, func() bool {
			state, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/stat")
			_, after, _ := strings.Cut(string(state), ") ")
			return err == nil && strings.HasPrefix(after, "Z")
		})
	}
}

// monitorKilled knows the monitor and its keeper by the names that they give themselves.
func monitorKilled(b *box) {
	name, keeper := "naru:"+b.ID, "naru-keep:"+b.ID
	name, keeper = name[:min(len(name), 15)], keeper[:min(len(keeper), 15)] // TASK_COMM_LEN
	b.attack("killname", name, keeper)
	died := false
	ended := b.Dir + "/exit.json" // a monitor writes it before it ends by itself
	b.drive = func() result {
		if _, err := b.start(); err != nil {
			return result{code: -1, refused: err}
		}
		eventually(deadline, func() bool {
			_, gone := pidOf(name)
			return gone != nil || exists(ended)(result{})
		})
		died = !eventually(500*time.Millisecond, func() bool { return exists(ended)(result{}) })
		return result{}
	}
	b.judge = func(result) bool { return died }
}

func sharedMemory(b *box) {
	key := 0x6e000000 | os.Getpid()<<8&0xffff00 | int(b.token[0])
	id, err := unix.SysvShmGet(key, 4096, unix.IPC_CREAT|unix.IPC_EXCL|0o600)
	must(b.t, err)
	data, err := unix.SysvShmAttach(id, 0, 0)
	must(b.t, err)
	copy(data, b.token)
	b.t.Cleanup(func() {
		unix.SysvShmDetach(data)
		unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	})
	b.attack("shm", strconv.Itoa(key))
	b.leaks()
}

func messageQueue(b *box) {
	name, err := unix.BytePtrFromString(b.ID)
	must(b.t, err)
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600, 0, 0, 0)
	if errno != 0 {
		b.t.Fatal("mq_open:", errno)
	}
	b.t.Cleanup(func() {
		unix.Close(int(fd))
		unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(name)), 0, 0)
	})
	message := []byte(b.token)
	if _, _, errno := unix.Syscall6(unix.SYS_MQ_TIMEDSEND, fd, uintptr(unsafe.Pointer(&message[0])), uintptr(len(message)), 0, 0, 0); errno != 0 {
		b.t.Fatal("mq_send:", errno)
	}
	b.attack("mq", b.ID)
	b.leaks()
}

// serve answers every connection with the token.
func serve(b *box, kind, address string) {
	l, err := net.Listen(kind, address)
	must(b.t, err)
	b.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(b.token))
			c.Close()
		}
	}()
	b.attack("dial", kind, l.Addr().String())
	b.leaks()
}

// rawIO adds the capability that the kernel itself wants for a file.
func rawIO(a attack) attack { a.base = caps("SYS_RAWIO"); return a }

// files are attacks on /proc and /sys.
func files() []attack {
	here := func(path string) func() string {
		return func() string {
			info, err := os.Stat(path)
			if err == nil && info.IsDir() {
				if names, err := os.ReadDir(path); err == nil && len(names) == 0 {
					return path + " is empty on this machine"
				}
			}
			if err != nil {
				return "this kernel has no " + path
			}
			return ""
		}
	}
	masked := func(name, what, path, with string) attack {
		return attack{name: name, what: what, mitigation: "mask on " + path, setup: run(with, path), hostIDs: true, off: unmask(path), needs: here(path)}
	}
	protected := func(name, what, path, by string) attack {
		return attack{name: name, what: what, mitigation: "read-only " + by, setup: run("openwrite", path), hostIDs: true, off: writable(by), needs: here(path)}
	}
	return []attack{
		masked("timers", "reads all timers of the host, with kernel addresses", "/proc/timer_list", "cat"),
		masked("interrupts", "measures key strokes and disks of the host by interrupt counts", "/proc/interrupts", "cat"),
		masked("keys", "lists keys of the host's users", "/proc/keys", "cat"),
		masked("firmware", "reads the machine's firmware tables", "/sys/firmware", "list"),
		masked("thermal throttling", "learns when other programs of the machine work hard, by how often a processor was too hot", "/sys/devices/system/cpu/cpu0/thermal_throttle", "list"),
		masked("ACPI", "reaches the machine's power switches", "/proc/acpi", "list"),
		rawIO(masked("kernel memory", "reads all memory of the machine", "/proc/kcore", "cat")),
		protected("core_pattern", "names a program for the host's kernel to run when a process dumps core", "/proc/sys/kernel/core_pattern", "/proc/sys"),
		protected("modprobe", "names a program for the host's kernel to run when it wants a module", "/proc/sys/kernel/modprobe", "/proc/sys"),
		protected("page cache", "drops the host's page cache", "/proc/sys/vm/drop_caches", "/proc/sys"),
		protected("binfmt and friends", "changes how the host's kernel treats files", "/proc/sys/fs/file-max", "/proc/sys"),
		protected("interrupt routing", "moves interrupts of the host", "/proc/irq/default_smp_affinity", "/proc/irq"),
		protected("pressure triggers", "has the host's kernel watch the pressure of the whole machine for it, without bound", "/proc/pressure/memory", "/proc/pressure"),
		protected("dynamic debug", "has the host's kernel log what its code does, or keep silent", "/proc/dynamic_debug/control", "/proc/dynamic_debug"),
		protected("sysrq", "reboots the machine by a letter", "/proc/sysrq-trigger", "/proc/sysrq-trigger"),
		{
			name: "anything in /proc", what: "looks for any file of the host's kernel in /proc that opens for writing", mitigation: "read-only paths of /proc",
			setup: run("walk", "/proc"), hostIDs: true, off: func(b *box) { b.Spec.Linux.ReadonlyPaths = nil },
		},
		{
			name: "anything in /sys", what: "the same in /sys, cgroups too", mitigation: "read-only /sys",
			setup: run("walk", "/sys"), hostIDs: true, off: withoutOption("/sys", "ro"),
		},
		{
			name: "sysfs", what: "changes the memory management of the host", mitigation: "read-only /sys",
			setup: run("openwrite", "/sys/kernel/mm/transparent_hugepage/defrag"), hostIDs: true, off: withoutOption("/sys", "ro"),
			needs: here("/sys/kernel/mm/transparent_hugepage/defrag"),
		},
	}
}
