package cli

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"naru/sandbox"
)

// finding is one line of doctor.
type finding struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Required bool   `json:"required"`
	Detail   string `json:"detail"`
}

func doctorCommand(env *Env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Show what this machine can do for containers and deployments",
		Long:  "Show what this machine can do for containers and deployments. The exit code is 1 when something required is missing.",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// Not openEngine: that there is no root is a finding here.
			e, err := sandbox.Open(sandbox.Options{Root: env.Root, Run: env.Run})
			if err != nil {
				return err
			}
			findings := examine(e)
			if asJSON {
				return errorsFirst(printJSON(env, findings), verdict(findings))
			}
			rows := [][]string{}
			for _, f := range findings {
				rows = append(rows, []string{f.Name, mark(f), f.Detail})
			}
			return errorsFirst(printTable(env.Stdout, []string{"WHAT", "STATE", "DETAIL"}, rows), verdict(findings))
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func mark(f finding) string {
	switch {
	case f.OK:
		return "ok"
	case f.Required:
		return "MISSING"
	}
	return "warning"
}

func verdict(findings []finding) error {
	for _, f := range findings {
		if f.Required && !f.OK {
			return &ExitError{Code: exitUnexpected, Err: errors.New("something required is missing")}
		}
	}
	return nil
}

// examine asks the kernel and looks for the programs that are used.
func examine(e *sandbox.Engine) []finding {
	findings := []finding{}
	for _, f := range e.Features() {
		findings = append(findings, finding{Name: f.Name, OK: f.OK, Required: required(f.Name), Detail: f.Detail})
	}
	findings = append(findings,
		program("nginx", "routes requests; apps without a route do not need it"),
		program("git", "not needed: naru fetches by itself"),
		uplink(), forwardPolicy(e), resolver(e))
	return findings
}

// required are the abilities without which there are no containers. Without any
// of the others they run, slower or with a warning.
func required(feature string) bool {
	return slices.Contains([]string{"root", "kernel", "overlay", "seccomp", "cgroup"}, feature)
}

// program looks for a program of the host.
func program(name, why string) finding {
	path, err := exec.LookPath(name)
	if err != nil {
		return finding{Name: name, Detail: "not found: " + why}
	}
	return finding{Name: name, OK: true, Detail: path}
}

// uplink finds the way out by the address a packet to the outside would get;
// connecting a datagram socket sends nothing (connect(2)).
func uplink() finding {
	f := finding{Name: "uplink", Detail: "no route to the outside: images cannot be pulled and code not fetched"}
	conn, err := net.Dial("udp4", "192.0.2.1:9") // TEST-NET-1 (RFC 5737)
	if err != nil {
		return f
	}
	defer conn.Close()
	f.OK, f.Detail = true, "source address "+strings.TrimSuffix(conn.LocalAddr().String(), ":0")
	if host, _, err := net.SplitHostPort(conn.LocalAddr().String()); err == nil {
		f.Detail = "source address " + host
	}
	return f
}

// forwardPolicy tells whether containers can reach the outside.
func forwardPolicy(e *sandbox.Engine) finding {
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	f := finding{Name: "forwarding", OK: err == nil}
	switch {
	case err != nil:
		f.Detail = err.Error()
	case strings.TrimSpace(string(data)) == "1":
		f.Detail = "ip_forward is on"
	default:
		f.Detail = "ip_forward is off; naru turns it on with the first container"
	}
	out, err := exec.Command("iptables", "-S", "FORWARD").Output()
	if err == nil && strings.HasPrefix(string(out), "-P FORWARD DROP") {
		f.Detail += "; policy of iptables FORWARD is DROP, naru adds a rule of its own for its bridges"
	}
	if found, err := e.Networks().Obstacles(); err == nil && len(found) > 0 {
		f.OK, f.Detail = false, f.Detail+"; "+strings.Join(found, "; ")
	}
	return f
}

func resolver(e *sandbox.Engine) finding {
	_, warn := e.Networks().Resolve()
	if warn != "" {
		return finding{Name: "name servers", Detail: warn}
	}
	return finding{Name: "name servers", OK: true, Detail: "containers get the host's"}
}
