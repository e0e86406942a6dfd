package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"naru/bench/stage"
)

// deploy measures from the delivery of a signed push, a one-line change of a
// cached small app of two replicas, to the first answer of the new version
// through nginx, and to the end of the deployment.
func deploy(ctx context.Context, runs int) (err error) {
	dockerfile, err := os.ReadFile("Dockerfile.sample")
	if err != nil {
		return err
	}
	s, err := stage.New(ctx, stage.Options{Naru: "bin/naru", Dockerfile: dockerfile})
	if s != nil {
		defer func() { err = errors.Join(err, s.CleanUp(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return err
	}
	if err := s.Serve(ctx); err != nil {
		return err
	}
	first := &series{name: "push → new version answers"}
	whole := &series{name: "push → every old replica gone"}
	for i := range max(runs/2, 3) + 1 {
		answered, ended, err := deployOnce(ctx, s, fmt.Sprintf("v%d", i+1))
		if err != nil {
			return err
		}
		if i > 0 {
			first.times, whole.times = append(first.times, answered), append(whole.times, ended)
		}
	}
	report("deployment, health interval 100 ms, no load", first)
	report("the same, to its end", whole)
	return nil
}

func deployOnce(ctx context.Context, s *stage.Stage, version string) (answered, ended time.Duration, err error) {
	if err := s.Push(ctx, version); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	id, err := s.Deliver(ctx)
	if err != nil {
		return 0, 0, err
	}
	for limit := began.Add(time.Minute); ; {
		got, err := s.Answer(ctx)
		if err == nil && got == version {
			break
		}
		if time.Now().After(limit) {
			return 0, 0, fmt.Errorf("%s does not answer: %q, %w", version, got, err)
		}
	}
	answered = time.Since(began)
	d, err := s.Wait(ctx, id)
	if err == nil && d.State != "live" {
		err = fmt.Errorf("deployment is %s: %s", d.State, d.Error)
	}
	return answered, time.Since(began), err
}
