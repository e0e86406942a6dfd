package cgroup

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// deviceRule is a rule of resources.devices, read. Major and minor are -1 for all.
type deviceRule struct {
	index        int // in the configuration
	allow        bool
	kind         byte // 'b', 'c' or 'a', both
	major, minor int64
	bits         int32 // of BPF_DEVCG_ACC_*
}

const (
	allAccess = unix.BPF_DEVCG_ACC_MKNOD | unix.BPF_DEVCG_ACC_READ | unix.BPF_DEVCG_ACC_WRITE
	anyNumber = -1
)

// limitDevices makes the rules the whole policy: in their order, the last that
// matches decides, and what none matches is refused. v1's controller gets them, and
// the unified directory as well, where no file inside the container leads to them.
// No rules mean no policy, and on an update no change.
func (g *Group) limitDevices(configured []specs.LinuxDeviceCgroup) error {
	if len(configured) == 0 {
		return nil
	}
	var rules []deviceRule
	for i, d := range configured {
		r, err := parseDevice(i, d)
		if err != nil {
			return err
		}
		rules = append(rules, r)
	}
	dir, v1 := g.UnifiedDir(), g.v1Dir("devices")
	if dir == "" && v1 == "" {
		return errors.New("resources.devices: the machine has neither the devices controller of cgroup v1 nor cgroup v2")
	}
	if dir != "" {
		if err := attachDevices(dir, rules); err != nil {
			return fmt.Errorf("resources.devices: %w", err)
		}
	}
	if v1 == "" {
		return nil
	}
	list, err := listDevices(rules)
	if err == nil || dir != "" { // the program has the exact rules
		err = list.apply(v1)
	}
	if err != nil {
		return fmt.Errorf("resources.devices: %w", err)
	}
	return nil
}

func parseDevice(i int, d specs.LinuxDeviceCgroup) (deviceRule, error) {
	r := deviceRule{index: i, allow: d.Allow, kind: 'a', major: anyNumber, minor: anyNumber}
	bad := func(what string, value any) error {
		return fmt.Errorf("resources.devices[%d].%s: %v: not valid", i, what, value)
	}
	switch d.Type {
	case "", "a":
	case "b", "c":
		r.kind = d.Type[0]
	case "u":
		r.kind = 'c' // mknod(1)'s word
	default:
		return r, bad("type", strconv.Quote(d.Type))
	}
	for _, n := range []struct {
		name string
		from *int64
		to   *int64
	}{{"major", d.Major, &r.major}, {"minor", d.Minor, &r.minor}} {
		if n.from == nil {
			continue
		}
		if *n.from < anyNumber || *n.from > math.MaxInt32 {
			return r, bad(n.name, *n.from)
		}
		*n.to = *n.from
	}
	for _, c := range d.Access {
		bit, ok := map[rune]int32{'m': unix.BPF_DEVCG_ACC_MKNOD, 'r': unix.BPF_DEVCG_ACC_READ, 'w': unix.BPF_DEVCG_ACC_WRITE}[c]
		if !ok {
			return r, bad("access", strconv.Quote(d.Access))
		}
		r.bits |= bit
	}
	if r.bits == 0 {
		r.bits = allAccess
	}
	return r, nil
}

// everything says that the rule leaves nothing to those before it.
func (r deviceRule) everything() bool {
	return r.kind == 'a' && r.major == anyNumber && r.minor == anyNumber && r.bits == allAccess
}

// covers says that the rule matches every device that o matches.
func (r deviceRule) covers(o deviceRule) bool {
	return r.kind == o.kind && (r.major == anyNumber || r.major == o.major) && (r.minor == anyNumber || r.minor == o.minor)
}

// meets says that one device matches both.
func (r deviceRule) meets(o deviceRule) bool {
	same := func(a, b int64) bool { return a == b || a == anyNumber || b == anyNumber }
	return r.kind == o.kind && same(r.major, o.major) && same(r.minor, o.minor)
}

func (r deviceRule) String() string {
	number := func(n int64) string {
		if n == anyNumber {
			return "*"
		}
		return strconv.FormatInt(n, 10)
	}
	access := ""
	for _, a := range []struct {
		bit  int32
		name string
	}{{unix.BPF_DEVCG_ACC_READ, "r"}, {unix.BPF_DEVCG_ACC_WRITE, "w"}, {unix.BPF_DEVCG_ACC_MKNOD, "m"}} {
		if r.bits&a.bit != 0 {
			access += a.name
		}
	}
	return fmt.Sprintf("%c %s:%s %s", r.kind, number(r.major), number(r.minor), access)
}

// deviceList is what v1's controller can hold: a default, and the exceptions from it.
type deviceList struct {
	allow      bool
	exceptions []deviceRule
}

// listDevices turns rules into a list with the same meaning. A rule that would cut
// something out of a wider exception has none, and the kernel would ignore it
// silently: then there is an error, and a list that allows more.
func listDevices(rules []deviceRule) (l deviceList, hole error) {
	for _, r := range rules {
		if r.everything() {
			l = deviceList{allow: r.allow}
			continue
		}
		kinds := []byte{r.kind}
		if r.kind == 'a' {
			kinds = []byte{'b', 'c'} // v1's "a" takes no numbers and no access
		}
		for _, r.kind = range kinds {
			if r.allow != l.allow {
				l.add(r)
			} else {
				hole = errors.Join(hole, l.cut(r))
			}
		}
	}
	return l, hole
}

func (l *deviceList) add(r deviceRule) {
	for i, e := range l.exceptions {
		if e.covers(r) && r.covers(e) {
			l.exceptions[i].bits |= r.bits
			return
		}
	}
	l.exceptions = append(l.exceptions, r)
}

func (l *deviceList) cut(r deviceRule) (hole error) {
	for i, e := range l.exceptions {
		if !r.meets(e) || e.bits&r.bits == 0 {
			continue
		}
		if !r.covers(e) {
			hole = fmt.Errorf("[%d] (%v) makes a hole in [%d] (%v), which cgroup v1 cannot", r.index, r, e.index, e)
			if !l.allow {
				continue
			}
		}
		l.exceptions[i].bits &^= r.bits
	}
	l.exceptions = slices.DeleteFunc(l.exceptions, func(e deviceRule) bool { return e.bits == 0 })
	return hole
}

// apply brings the controller from what it has to the list. Where both refuse by
// default, only the difference is written, new exceptions first: programs that run
// lose nothing they keep, not for a moment.
func (l deviceList) apply(dir string) error {
	except, cut := "devices.allow", "devices.deny"
	if l.allow {
		except, cut = cut, except
	}
	b, err := readFile(filepath.Join(dir, "devices.list"))
	if err != nil {
		return err
	}
	have := strings.Split(strings.TrimSpace(string(b)), "\n")
	if l.allow || slices.Contains(have, "a *:* rwm") { // the list says "all" whatever the exceptions
		if err := write(dir, cut, "a"); err != nil {
			return err
		}
		have = nil
	}
	var want, add []string
	for _, e := range l.exceptions {
		want = append(want, e.String())
		if !slices.Contains(have, e.String()) {
			add = append(add, e.String())
		}
	}
	if err := writeAll(dir, except, add); err != nil {
		return err
	}
	for _, h := range have {
		if h == "" || slices.Contains(want, h) {
			continue
		}
		if err := l.drop(dir, cut, h); err != nil {
			return err
		}
	}
	return nil
}

// drop takes the access of an old entry away that its device does not keep.
func (l deviceList) drop(dir, cut, entry string) error {
	i := strings.LastIndex(entry, " ")
	if i < 0 {
		return fmt.Errorf("unknown entry %q in devices.list", entry)
	}
	bits := entry[i+1:]
	for _, e := range l.exceptions {
		if s := e.String(); strings.HasPrefix(s, entry[:i+1]) {
			bits = strings.Map(func(c rune) rune {
				if strings.ContainsRune(s[i+1:], c) {
					return -1
				}
				return c
			}, bits)
		}
	}
	if bits == "" {
		return nil
	}
	return write(dir, cut, entry[:i+1]+bits)
}
