package cgroup

import (
	"os"
	"strconv"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// usual are device rules as a container has them.
func usual() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, minor := range []int64{3, 5, 7, 8, 9} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: &minor, Access: "rwm"})
	}
	for _, minor := range []int64{0, 2} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(5)), Minor: &minor, Access: "rwm"})
	}
	return append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(136)), Access: "rwm"})
}

// BenchmarkDevices is the part of a start that device rules cost, by v1 files and by
// the program beside another container with the same.
func BenchmarkDevices(b *testing.B) {
	h, err := Detect()
	if err != nil || os.Geteuid() != 0 {
		b.Skip("needs root and cgroups:", err)
	}
	for name, h := range map[string]Host{"v1": {V1: h.V1}, "program": {Unified: h.Unified, Controllers: h.Controllers}} {
		b.Run(name, func(b *testing.B) {
			if h.Unified == "" && h.V1["devices"] == "" {
				b.Skip("not on this machine")
			}
			parent := "naru-bench-" + strconv.Itoa(os.Getpid()) + "/"
			keep, err := h.Create(parent+"another", &specs.LinuxResources{Devices: usual()})
			if err != nil {
				b.Fatal(err)
			}
			defer func() {
				if err := keep.Remove(); err != nil {
					b.Error(err)
				}
			}()
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				g, err := h.Create(parent+strconv.Itoa(i), nil)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				err = g.limitDevices(usual())
				b.StopTimer()
				if err != nil {
					b.Fatal(err)
				}
				if err := g.Remove(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkLoadManyRules(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	var rules []deviceRule
	for i := range int64(300) {
		rules = append(rules, deviceRule{allow: i%2 == 0, kind: 'c', major: i, minor: anyNumber, bits: 6})
	}
	for b.Loop() {
		fd, err := loadBPF(deviceProgram(rules))
		if err != nil {
			b.Fatal(err)
		}
		unix.Close(fd)
	}
}
