package network

import (
	"context"
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRulesAsTheKernelShowsThem compares the whole table, as nft prints it,
// with testdata/rules.golden; -update writes it anew, to be reviewed as code.
func TestRulesAsTheKernelShowsThem(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	uplink(t)
	m := manager(t, t.TempDir())
	names := []string{m.tableName(), "TABLE"}
	for _, n := range []struct {
		name string
		o    Options
	}{
		{"blue", Options{Subnet: netip.MustParsePrefix("10.99.1.0/24")}},
		{"build", Options{Subnet: netip.MustParsePrefix("10.99.2.0/24"), Untrusted: true}},
		{"six", Options{Subnet: netip.MustParsePrefix("10.99.3.0/24"), IPv6: true, Subnet6: netip.MustParsePrefix("fd00:99::/64")}},
		{"inner", Options{Subnet: netip.MustParsePrefix("10.99.16.0/20"), Internal: true}},
	} {
		made, err := m.Create(t.Context(), n.name, n.o)
		must(t, err)
		names = append(names, made.Bridge, strings.ToUpper(n.name))
	}
	_, err := m.Attach(t.Context(), Endpoint{Network: "six", Container: "c1", Pid: newNamespace(t).pid(), Ports: []Port{
		{HostPort: 8080, Port: 80, Proto: "tcp"}, {Host: netip.MustParseAddr("127.0.0.1"), HostPort: 5353, Port: 53, Proto: "udp"},
	}})
	must(t, err)
	out, err := exec.Command("nft", "list", "table", "inet", m.tableName()).Output()
	must(t, err)
	got := strings.NewReplacer(names...).Replace(string(out))
	golden := filepath.Join("testdata", "rules.golden")
	if flag.Lookup("update").Value.String() == "true" {
		must(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}

// BenchmarkAttachDetach is a container's share: address, veth, both ends, and
// taking it back after the namespace is gone.
func BenchmarkAttachDetach(b *testing.B) {
	m := openRoot(b, b.TempDir())
	b.Cleanup(func() { must(b, m.Teardown(context.Background())) })
	keep := newNamespace(b)
	attach(b, m, "", "keep", keep)
	var in, out time.Duration
	for b.Loop() {
		b.StopTimer()
		n := newNamespace(b)
		b.StartTimer()
		start := time.Now()
		attach(b, m, "", "c1", n)
		in += time.Since(start)
		b.StopTimer()
		n.end()
		b.StartTimer()
		start = time.Now()
		must(b, m.Detach(b.Context(), "c1"))
		out += time.Since(start)
	}
	b.ReportMetric(float64(in.Microseconds())/float64(b.N), "µs/attach")
	b.ReportMetric(float64(out.Microseconds())/float64(b.N), "µs/detach")
}
