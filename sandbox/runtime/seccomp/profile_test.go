package seccomp

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// dockers reads Docker's own default profile where the module is on this machine.
func dockers(t *testing.T) *Profile {
	t.Helper()
	cache := os.Getenv("GOMODCACHE")
	if home, err := os.UserHomeDir(); cache == "" && err == nil {
		cache = filepath.Join(home, "go/pkg/mod")
	}
	found, _ := filepath.Glob(filepath.Join(cache, "github.com/moby/profiles/seccomp@v0.3.0/default.json"))
	if len(found) == 0 {
		t.Skip("needs moby/profiles v0.3.0 in the module cache")
	}
	return parseFile(t, found[0])
}

func parseFile(t *testing.T, path string) *Profile {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParseProfile(data)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return p
}

// TestDockersProfileIsOurDefault asks Docker's file and our policy about every call, with
// many arguments, for processes with different capabilities.
func TestDockersProfileIsOurDefault(t *testing.T) {
	p := dockers(t)
	native := family(runtime.GOARCH)[0]
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_SYS_PTRACE", "CAP_SYS_CHROOT", "CAP_BPF"}, {"CAP_DAC_READ_SEARCH", "CAP_SYS_TIME", "CAP_SYSLOG"}} {
		policy, err := p.Resolve(caps)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := Build(policy)
		if err != nil {
			t.Fatal(err)
		}
		own := Default(caps, policy.Architectures...)
		ours, err := Build(own)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(policy.Architectures, native.name) {
			t.Errorf("architectures %v", policy.Architectures)
		}
		differ := map[string]bool{}
		for _, e := range table {
			n, ok := native.number(e.name)
			if !ok {
				continue
			}
			for _, arg := range []uint64{0, 1, 2, 3, 8, 10, 16, 38, 40, 0x20000, unix.TIOCSTI, unix.CLONE_NEWUSER, unix.CLONE_NEWNS | 17, 1<<32 - 1} {
				d := data{number: n, arch: native.audit}
				for i := range d.args {
					d.args[i] = arg
				}
				a, _ := interpret(t, theirs.Program, d)
				b, _ := interpret(t, ours.Program, d)
				if a != b {
					differ[e.name] = true
				}
			}
		}
		delete(differ, "ioctl") // ours refuses to type into terminals
		if len(differ) > 0 {
			t.Errorf("with %v they differ about %v", caps, differ)
		}
	}
}

func TestPodmansProfile(t *testing.T) {
	const path = "/usr/share/containers/seccomp.json"
	if _, err := os.Stat(path); err != nil {
		t.Skip("needs the profile of containers/common: ", err)
	}
	policy, err := parseFile(t, path).Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Build(policy)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{"read": unix.SECCOMP_RET_ALLOW, "swapon": unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)} {
		n, _ := family(runtime.GOARCH)[0].number(name)
		if got, _ := interpret(t, f.Program, data{number: n, arch: family(runtime.GOARCH)[0].audit}); got != want {
			t.Errorf("%s: %#x, want %#x", name, got, want)
		}
	}
}

const customProfile = `{
	"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS",
	"archMap": [{"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]},
		{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}, {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}],
	"syscalls": [
		{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "always"},
		{"name": "getpid", "action": "SCMP_ACT_ERRNO", "errno": "EXDEV", "errnoRet": 1},
		{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]}},
		{"names": ["umount2"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]}},
		{"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
		{"names": ["acct"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "250.0"}},
		{"names": ["reboot"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "4.8"}},
		{"names": ["sync"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "arm64"]}},
		{"names": ["pause"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64", "arm64"]}},
		{"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}}
	]}`

func TestConditions(t *testing.T) {
	p, err := ParseProfile([]byte(customProfile))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		caps []string
		want string
	}{
		{nil, "read write getpid umount2 bpf sync"},
		{[]string{"CAP_SYS_ADMIN"}, "read write getpid bpf sync"},
		{[]string{"CAP_SYS_ADMIN", "CAP_SYS_CHROOT"}, "read write getpid mount bpf sync"},
	} {
		policy, err := p.Resolve(test.caps)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range policy.Syscalls {
			names = append(names, s.Names...)
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("with %v: %s, want %s", test.caps, got, test.want)
		}
		if *policy.DefaultErrnoRet != uint(unix.ENOSYS) || *policy.Syscalls[1].ErrnoRet != uint(unix.EXDEV) {
			t.Errorf("errors %d, %d", *policy.DefaultErrnoRet, *policy.Syscalls[1].ErrnoRet)
		}
		if want := []specs.Arch{specs.ArchX86_64, specs.ArchX86}; runtime.GOARCH == "amd64" && !slices.Equal(policy.Architectures, want) {
			t.Errorf("architectures %v, want %v", policy.Architectures, want)
		}
	}
	// It is kept in a container's record.
	kept, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseProfile(kept)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, again); diff != "" {
		t.Errorf("after a round trip:\n%s", diff)
	}
}

func TestBadProfilesNameTheField(t *testing.T) {
	rule := func(s string) string {
		return `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}, ` + s + `]}`
	}
	for want, profile := range map[string]string{
		`unexpected EOF`:                                                                       `{"defaultAction": "SCMP_ACT`,
		`something follows`:                                                                    `{"defaultAction": "SCMP_ACT_ALLOW"} {}`,
		`unknown field "defaultaktion"`:                                                        `{"defaultaktion": "SCMP_ACT_ALLOW"}`,
		`default: action: "" is not known`:                                                     `{}`,
		`default: action: "SCMP_ACT_NO" is not known`:                                          `{"defaultAction": "SCMP_ACT_NO"}`,
		`defaultErrno: "EWHAT" is no error`:                                                    `{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "EWHAT"}`,
		`architectures and archMap`:                                                            `{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}`,
		`syscalls[1].name: "a": there are names, too`:                                          rule(`{"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"}`),
		`syscalls[1].errno: "E" is no error`:                                                   rule(`{"names": ["b"], "action": "SCMP_ACT_ERRNO", "errno": "E"}`),
		`unknown field "include"`:                                                              rule(`{"names": ["b"], "action": "SCMP_ACT_ALLOW", "include": {}}`),
		`unknown field "kernel"`:                                                               rule(`{"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"kernel": "4.8"}}`),
		`syscalls[1].includes.minKernel: "4": want`:                                            rule(`{"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4"}}`),
		`syscalls[1].excludes.minKernel: "4.x": want`:                                          rule(`{"names": ["b"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "4.x"}}`),
		`syscalls[1].includes.arches[1]: "x86_64" is not known`:                                rule(`{"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm", "x86_64"]}}`),
		`syscalls[1].excludes.caps[0]: "SYS_ADMIN": want a name such as`:                       rule(`{"names": ["b"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["SYS_ADMIN"]}}`),
		`syscalls[1]: action: "SCMP_ACT_NONE" is not known`:                                    rule(`{"names": ["b"], "action": "SCMP_ACT_NONE", "includes": {"caps": ["CAP_SYS_ADMIN"]}}`),
		`syscalls[1]: args[0].op: "SCMP_CMP_NO" is not known`:                                  rule(`{"names": ["b"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "op": "SCMP_CMP_NO", "value": 1}]}`),
		`cannot unmarshal string into Go struct field ProfileRule.syscalls.LinuxSyscall.names`: rule(`{"names": "b", "action": "SCMP_ACT_ALLOW"}`),
	} {
		if _, err := ParseProfile([]byte(profile)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
