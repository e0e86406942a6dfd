package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// paths runs the benchmarks that are kept beside the code they measure, where its
// insides are at hand.
func paths(ctx context.Context, found *budgets) {
	for _, p := range []struct {
		what, want    string
		pattern, room string
		times         string
		line, unit    string // which line, and which of its figures
		format        string
		met           func(float64) bool
	}{
		{"seccomp load", "≤ 80 µs", "Load$", "./sandbox/runtime/seccomp", "3000x", "BenchmarkLoad/tree", "ns/op", "%.0f ns", func(v float64) bool { return v <= 80_000 }},
		{"log", "≥ 500 MB/s", "BenchmarkLog$", "./sandbox/runtime", "3x", "BenchmarkLog", "MB/s", "%.0f MB/s", func(v float64) bool { return v >= 500 }},
		{"TCP by the bridge, of a plain pair", "≥ 0.98", "Throughput", "./sandbox/network", "15x", "BenchmarkThroughput", "bridge/plain", "%.3f", func(v float64) bool { return v >= 0.98 }},
	} {
		out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", p.pattern, "-benchtime", p.times, p.room).Output()
		if err != nil {
			found.missing(p.what, p.want, fmt.Errorf("go test %s: %w", p.room, err))
			continue
		}
		v, err := figure(string(out), p.line, p.unit)
		if err != nil {
			found.missing(p.what, p.want, err)
			continue
		}
		fmt.Printf("%s: "+p.format+"\n", p.what, v)
		found.add(p.what, p.want, fmt.Sprintf(p.format, v), p.met(v))
	}
}

// figure finds the number before a unit in the lines of a benchmark, the last of them.
func figure(out, name, unit string) (v float64, err error) {
	err = fmt.Errorf("no %s of %s in the output", unit, name)
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasPrefix(f[0], name) {
			continue
		}
		for i := 1; i < len(f); i++ {
			if f[i] == unit {
				v, err = strconv.ParseFloat(f[i-1], 64)
			}
		}
	}
	return v, err
}
