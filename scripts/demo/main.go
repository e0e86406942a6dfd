// Command demo shows naru's main job on this machine, from nothing: it starts an
// agent with a root of its own under a temporary folder, makes a bare git
// repository with a small app of two replicas, and delivers signed pushes while
// a strict load runs. It prints what happens, when, and what the load lost.
//
//	v1  a signed GitHub push: the first version goes live
//	v2  rolled out under load
//	v3  never gets healthy: undone, v2 still serves
//	v4  the agent is killed with SIGKILL in the middle of the roll, and started
//	    again: v4 goes live
//
// Everything listens on loopback. At the end the machine is as before, which is
// checked, unless -keep leaves it all running.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"naru/bench/stage"
)

func main() {
	keep := flag.Bool("keep", false, "leave everything running and print the URLs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, keep bool) (err error) {
	if os.Getuid() != 0 {
		return fmt.Errorf("containers need root: run it with sudo")
	}
	before, err := stage.TakeSnapshot(ctx)
	if err != nil {
		return err
	}
	d, err := newDemo(ctx)
	defer func() {
		if keep && err == nil {
			d.printURLs()
			return
		}
		err = d.cleanUp(err, before)
	}()
	if err != nil {
		return err
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	return d.play(ctx)
}

// play is the story: four versions, one load.
func (d *demo) play(ctx context.Context) error {
	if err := d.push(ctx, "v1"); err != nil {
		return err
	}
	if err := d.expect(ctx, d.Deliver, "live", "v1"); err != nil {
		return err
	}
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	reports := make(chan loaded, 1)
	go func() { reports <- d.load(loadCtx) }()
	d.say("strict load started: keep-alive clients that never look before they write, 30 %% POST, some connect first and send later")

	err := d.underLoad(ctx)
	stopLoad()
	report := <-reports
	if err = errors.Join(err, report.err); err != nil {
		return err
	}
	d.say("load stopped")
	d.printReport(report.Report)
	if report.Losses() > 0 {
		return fmt.Errorf("%d of %d requests were lost", report.Losses(), report.Sent)
	}
	return nil
}

func (d *demo) underLoad(ctx context.Context) error {
	if err := d.push(ctx, "v2"); err != nil {
		return err
	}
	if err := d.expect(ctx, d.Deliver, "live", "v2"); err != nil {
		return err
	}
	if err := d.push(ctx, "v3 sick"); err != nil {
		return err
	}
	if err := d.expect(ctx, d.Deliver, "rolled_back", "v2"); err != nil {
		return err
	}
	if err := d.push(ctx, "v4"); err != nil {
		return err
	}
	return d.expect(ctx, d.deliverAndKill, "live", "v4")
}

// expect delivers the newest push, waits for the deployment to end, and checks
// its state and the version that answers through nginx.
func (d *demo) expect(ctx context.Context, deliver func(context.Context) (string, error), state, version string) error {
	began := time.Now()
	id, err := deliver(ctx)
	if err != nil {
		return err
	}
	dep, err := d.Wait(ctx, id)
	if err != nil {
		return err
	}
	answer, err := d.Answer(ctx)
	if err != nil {
		return err
	}
	d.say("deployment %s after %s; %s answers", dep.State, time.Since(began).Round(10*time.Millisecond), answer)
	if dep.Error != "" {
		d.say("  it says: %s", firstLine(dep.Error))
	}
	if dep.State != state || answer != version {
		return fmt.Errorf("want state %s and version %s; the deployment said: %s", state, version, dep.Error)
	}
	return nil
}
