package cli

import (
	"encoding/json"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"naru/sandbox/oci"
)

func (o *ociEnv) startCommand() *cobra.Command {
	return &cobra.Command{
		Use: "start CONTAINER", Short: "Run the program of a created container", Args: cobra.ExactArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error {
			return startExit(r.Start(c.Context(), args[0]))
		}),
	}
}

func (o *ociEnv) stateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "state CONTAINER", Short: "Print the state of a container as JSON", Args: cobra.ExactArgs(1),
		RunE: o.with(func(_ *cobra.Command, r oci.Runtime, args []string) error {
			c, err := r.Open(args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			return o.json(ociStateOf(c))
		}),
	}
}

// ociState is runtime-spec's state with what runc prints beside it.
type ociState struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Pid         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func ociStateOf(c *oci.Container) ociState {
	owner := strconv.Itoa(c.Owner)
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	return ociState{c.Version, c.ID, c.Pid, string(c.Status), c.Bundle, c.Rootfs, c.Created, c.Annotations, owner}
}

func (o *ociEnv) json(v any) error {
	e := json.NewEncoder(o.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (o *ociEnv) killCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "kill CONTAINER [SIGNAL]", Short: "Send a signal (TERM) to a container's init", Args: cobra.RangeArgs(1, 2),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error {
			name := "TERM"
			if len(args) > 1 {
				name = args[1]
			}
			sig, err := ociSignal(name)
			if err != nil {
				return err
			}
			return r.Kill(c.Context(), args[0], sig, all)
		}),
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "send the signal to every process of the container")
	return c
}

// ociSignal reads "TERM", "SIGTERM", "term" or "15".
func ociSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("signal %q: not from 0 to 64", s)
		}
		return unix.Signal(n), nil
	}
	sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG"))
	if sig == 0 {
		return 0, fmt.Errorf("unknown signal %q", s)
	}
	return sig, nil
}

func (o *ociEnv) deleteCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "delete CONTAINER", Short: "Remove a container that has ended", Args: cobra.ExactArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error {
			return r.Delete(c.Context(), args[0], force)
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill it first, and do not mind if it is not there")
	return c
}

func (o *ociEnv) listCommand() *cobra.Command {
	var format string
	var quiet bool
	c := &cobra.Command{
		Use: "list", Short: "List the containers", Args: cobra.NoArgs,
		RunE: o.with(func(_ *cobra.Command, r oci.Runtime, _ []string) error {
			all, err := r.List()
			if err != nil {
				return err
			}
			states := []ociState{}
			for _, c := range all {
				states = append(states, ociStateOf(c))
				c.Close()
			}
			switch {
			case quiet:
				for _, s := range states {
					fmt.Fprintln(o.Stdout, s.ID)
				}
				return nil
			case format == "json":
				return json.NewEncoder(o.Stdout).Encode(states)
			case format != "table":
				return usage("--format %q: table or json", format)
			}
			w := tabwriter.NewWriter(o.Stdout, 12, 1, 3, ' ', 0)
			fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
			for _, s := range states {
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
			}
			return w.Flush()
		}),
	}
	c.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids alone")
	return c
}

func (o *ociEnv) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause CONTAINER", Short: "Freeze every process of a container", Args: cobra.ExactArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error { return r.Pause(c.Context(), args[0]) }),
	}
}

func (o *ociEnv) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume CONTAINER", Short: "Let a paused container go on", Args: cobra.ExactArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error { return r.Resume(c.Context(), args[0]) }),
	}
}
