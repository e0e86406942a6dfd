package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"naru/bench/stage"
)

// contextFiles is how many files the measured context has.
const contextFiles = 20_000

// rebuild measures a build of an unchanged context of 20,000 files, as whole
// processes: naru build beside docker build.
func rebuild(ctx context.Context, runs int) (err error) {
	dir, err := os.MkdirTemp("", "naru-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	work := filepath.Join(dir, "context")
	if err := fillContext(work); err != nil {
		return err
	}
	base := filepath.Join(dir, "busybox.tar")
	if err := stage.BusyboxImage(base); err != nil {
		return err
	}
	naru := []string{"bin/naru", "--root", filepath.Join(dir, "root"), "--run", filepath.Join(dir, "run")}
	defer func() { // the network of builds stays up otherwise
		err = errors.Join(err, quiet(context.WithoutCancel(ctx), slices.Concat(naru, []string{"system", "reset", "--force"})...))
	}()
	if err := quiet(ctx, slices.Concat(naru, []string{"image", "import", base, "busybox"})...); err != nil {
		return err
	}
	all := []*series{{name: "naru build", once: timed(slices.Concat(naru, []string{"build", "-t", "bench", work})...)}}
	if exec.CommandContext(ctx, "docker", "version").Run() != nil {
		fmt.Println("rebuild: no Docker engine answers, so no peer")
	} else {
		if err := quiet(ctx, "docker", "import", base, "busybox"); err != nil {
			return err
		}
		all = append(all, &series{name: "docker build", once: timed("docker", "build", "-t", "naru-bench", work)})
	}
	if err := interleave(ctx, max(runs/3, 3), all...); err != nil {
		return err
	}
	report(fmt.Sprintf("unchanged rebuild, COPY of %d files", contextFiles), all...)
	return nil
}

func fillContext(dir string) error {
	for i := range contextFiles {
		sub := filepath.Join(dir, "src", strconv.Itoa(i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, strconv.Itoa(i)), fmt.Appendf(nil, "file %d\n", i), 0o644); err != nil {
			return err
		}
	}
	text := "FROM busybox\nCOPY src /src\nRUN [\"/bin/true\"]\nCMD [\"/bin/sh\"]\n"
	return os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644)
}

func quiet(ctx context.Context, args ...string) error {
	if text, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", args, err, text)
	}
	return nil
}

func timed(args ...string) func(context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		began := time.Now()
		err := quiet(ctx, args...)
		return time.Since(began), err
	}
}
