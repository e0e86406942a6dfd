package cli

import (
	"strconv"

	"github.com/spf13/pflag"

	"naru/sandbox/build"
)

// dockerFlags are flags that docker build has, and buildx for its sake, and that
// hardly mean anything here: they are hidden, obeyed where that is possible, and
// else an error that says why.
type dockerFlags struct {
	compress, distrust, squash                                   bool
	builder, call, isolation, memorySwap, cpusetCPUs, cpusetMems string
	cpuShares, cpuPeriod, cpuQuota                               int64
	securityOpts                                                 []string
}

func (f *dockerFlags) register(flags *pflag.FlagSet) {
	flags.BoolVar(&f.compress, "compress", false, "accepted for Docker's sake: the context is not sent anywhere")
	flags.BoolVar(&f.distrust, "disable-content-trust", true, "accepted for Docker's sake: images are not signed by Notary")
	flags.BoolVar(&f.squash, "squash", false, "not possible")
	flags.StringVar(&f.builder, "builder", "", "default: there is one builder")
	flags.StringVar(&f.call, "call", "build", "build, or check as --check")
	flags.StringVar(&f.isolation, "isolation", "", "default: there is one isolation")
	flags.StringVar(&f.memorySwap, "memory-swap", "", "not possible")
	flags.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "not possible")
	flags.StringVar(&f.cpusetMems, "cpuset-mems", "", "not possible")
	flags.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "not possible")
	flags.Int64Var(&f.cpuPeriod, "cpu-period", 0, "microseconds in which --cpu-quota is counted")
	flags.Int64Var(&f.cpuQuota, "cpu-quota", 0, "microseconds of --cpu-period that RUN steps may use")
	flags.StringArrayVar(&f.securityOpts, "security-opt", nil, "not possible")
	for _, name := range []string{"compress", "disable-content-trust", "squash", "builder", "isolation", "memory-swap", "cpuset-cpus", "cpuset-mems", "cpu-shares", "cpu-period", "cpu-quota", "security-opt"} {
		_ = flags.MarkHidden(name) // it is defined above
	}
}

// complete does what can be done.
func (f *dockerFlags) complete(o *build.Options, check *bool) error {
	switch f.call {
	case "", "build":
	case "check", "lint":
		*check = true
	default:
		return usage("--call %s: only build and check can be called", f.call)
	}
	weight := "" // Docker's default, 1024, asks for nothing
	if f.cpuShares != 0 && f.cpuShares != 1024 {
		weight = strconv.FormatInt(f.cpuShares, 10)
	}
	for _, c := range []struct{ flag, value, allowed, why string }{
		{"builder", f.builder, "default", "there is one builder, which needs no daemon"},
		{"isolation", f.isolation, "default", "steps run in naru's sandbox"},
		{"memory-swap", f.memorySwap, "", "the swap of steps is not limited by itself; --memory is there"},
		{"cpuset-cpus", f.cpusetCPUs, "", "steps are not bound to processors; --cpus limits them"},
		{"cpuset-mems", f.cpusetMems, "", "steps are not bound to memory nodes"},
		{"cpu-shares", weight, "", "steps have a fixed weight below that of apps; --cpus limits them"},
	} {
		if c.value != "" && c.value != c.allowed {
			return usage("--%s %s is not possible: %s", c.flag, c.value, c.why)
		}
	}
	switch {
	case f.squash:
		return usage("--squash is not possible: join the steps, or copy what they made into a stage FROM scratch")
	case !f.distrust:
		return usage("--disable-content-trust=false is not possible: signatures of Notary are not checked; name base images by digest")
	case len(f.securityOpts) > 0:
		return usage("--security-opt %s is not possible: the sandbox of a step cannot be weakened", f.securityOpts[0])
	case f.cpuPeriod < 0 || f.cpuQuota < 0 || f.cpuPeriod > 0 && f.cpuQuota == 0:
		return usage("--cpu-period %d is nothing without a positive --cpu-quota", f.cpuPeriod)
	case f.cpuQuota > 0 && o.CPUs > 0:
		return usage("--cpu-quota and --cpus exclude each other")
	case f.cpuQuota > 0:
		period := f.cpuPeriod
		if period == 0 {
			period = 100_000 // Docker's
		}
		o.CPUs = float64(f.cpuQuota) / float64(period)
	}
	return nil
}
