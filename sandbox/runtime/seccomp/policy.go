package seccomp

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)

// policy is a specs.LinuxSeccomp whose values are checked and turned into the kernel's.
type policy struct {
	deflt    uint32
	rules    []rule
	notifies bool
}

// rule is one of the configuration.
type rule struct {
	names   []string
	verdict uint32
	args    []specs.LinuxSeccompArg
}

func read(p *specs.LinuxSeccomp) (*policy, error) {
	deflt, err := verdict(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	out := &policy{deflt: deflt}
	if p.DefaultAction == specs.ActNotify {
		return nil, fmt.Errorf("defaultAction: %q: not even the answer could be waited for", p.DefaultAction)
	}
	for i, s := range p.Syscalls {
		r := rule{names: s.Names, args: s.Args}
		if r.verdict, err = verdict(s.Action, s.ErrnoRet); err == nil {
			err = checkRule(s)
		}
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		out.notifies = out.notifies || s.Action == specs.ActNotify
		out.rules = append(out.rules, apart(r)...)
	}
	if p.ListenerMetadata != "" && p.ListenerPath == "" {
		return nil, fmt.Errorf("listenerMetadata: %q: without a listenerPath", p.ListenerMetadata)
	}
	if out.notifies && p.ListenerPath == "" {
		return nil, errors.New("listenerPath: missing, and there are rules with SCMP_ACT_NOTIFY")
	}
	return out, nil
}

func checkRule(s specs.LinuxSyscall) error {
	if len(s.Names) == 0 || slices.Contains(s.Names, "") {
		return errors.New("names: a rule needs names")
	}
	if s.Action == specs.ActNotify && slices.Contains(s.Names, "write") {
		return errors.New("SCMP_ACT_NOTIFY of write: the runtime itself would wait for the answer")
	}
	for i, a := range s.Args {
		if a.Index > 5 {
			return fmt.Errorf("args[%d].index: %d: calls have six arguments, from 0", i, a.Index)
		}
		if !slices.Contains(Operators(), a.Op) {
			return fmt.Errorf("args[%d].op: %q is not known", i, a.Op)
		}
	}
	return nil
}

// apart splits a rule that has two conditions on one argument: one of them is enough.
func apart(r rule) []rule {
	var seen [6]bool
	twice := false
	for _, a := range r.args {
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	if !twice {
		return []rule{r}
	}
	var list []rule
	for i := range r.args {
		list = append(list, rule{names: r.names, verdict: r.verdict, args: r.args[i : i+1]})
	}
	return list
}

// verdict is what the filter returns for an action.
func verdict(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	limit := uint(0)
	switch a {
	case specs.ActErrno:
		limit = 4095 // the kernel's MAX_ERRNO
	case specs.ActTrace:
		limit = unix.SECCOMP_RET_DATA
	}
	data := uint32(unix.EPERM)
	if errno != nil {
		if *errno > limit {
			return 0, fmt.Errorf("errnoRet: %d: action %s takes up to %d", *errno, a, limit)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActNotify:
		return unix.SECCOMP_RET_USER_NOTIF, nil
	}
	return 0, fmt.Errorf("action: %q is not known", a)
}

// Operators are the comparisons of arguments that Build knows.
func Operators() []specs.LinuxSeccompOperator {
	return []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
		specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
}

// Actions are the actions that Build knows.
func Actions() []specs.LinuxSeccompAction {
	return []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap,
		specs.ActErrno, specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify}
}
