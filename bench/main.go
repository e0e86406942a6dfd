// Command bench measures naru beside its peers on the same machine, in turns
// (A B A B …), and prints medians and ratios. It is no test: nothing fails when
// a figure is bad. What a machine lacks is left out, and said.
//
//	start    from the call to the first instruction of a static program, with
//	         every default of isolation, then whole commands; peer: runc run on
//	         the same root with the same limits and seccomp policy
//	rebuild  a second build of an unchanged context; peer: docker build
//	deploy   from a signed push to the first answer of the new version
//	build    the builder, cold and warm; peers: BuildKit (its binaries in the
//	         directory of -buildkit), docker's classic builder, buildah
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"naru/sandbox/runtime/launch"
)

func main() {
	launch.Main()
	runs := flag.Int("runs", 30, "turns of the quick figures")
	only := flag.String("only", "start,rebuild,deploy,build", "which figures")
	buildkit := flag.String("buildkit", "", "directory of buildkitd and buildctl")
	parts := flag.String("part", "", "of build: steps, copies, stages, large, base, budget (default: all)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *runs, strings.Split(*only, ","), buildOptions{*buildkit, strings.FieldsFunc(*parts, func(r rune) bool { return r == ',' })}); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, runs int, only []string, o buildOptions) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("containers need root")
	}
	figures := []struct {
		name string
		do   func(context.Context, int) error
	}{{"start", start}, {"rebuild", rebuild}, {"deploy", deploy}, {"build", func(ctx context.Context, runs int) error { return builds(ctx, runs, o) }}}
	for _, f := range figures {
		if !slices.Contains(only, f.name) {
			continue
		}
		if err := f.do(ctx, runs); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// series is one contestant and its times.
type series struct {
	name  string
	once  func(context.Context) (time.Duration, error)
	times []time.Duration
}

// interleave runs the contestants in turns, after one round that is not counted.
func interleave(ctx context.Context, runs int, all ...*series) error {
	for i := range runs + 1 {
		for _, s := range all {
			d, err := s.once(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if i > 0 {
				s.times = append(s.times, d)
			}
		}
	}
	return nil
}

// report prints a figure: each contestant's median and 95th percentile, and
// the ratio of each peer's median to the first one's.
func report(figure string, all ...*series) {
	fmt.Printf("%s (%d runs each, in turns)\n", figure, len(all[0].times))
	for i, s := range all {
		line := fmt.Sprintf("  %-34s median %9s   p95 %9s   min %9s", s.name, round(s.at(0.5)), round(s.at(0.95)), round(s.at(0)))
		if i > 0 {
			line += fmt.Sprintf("   %.1f× of naru", float64(s.at(0.5))/float64(all[0].at(0.5)))
		}
		fmt.Println(line)
	}
}

func (s *series) at(quantile float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s.times))
	return sorted[min(int(quantile*float64(len(sorted))), len(sorted)-1)]
}

func round(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(100 * time.Microsecond)
}
