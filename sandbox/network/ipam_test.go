package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// What a power cut has cut off belongs to nobody, and its address can be used.
func TestRecordCutOffIsNobodys(t *testing.T) {
	m := &Manager{dir: t.TempDir()}
	whole := record{Address: netip.MustParseAddr("10.213.0.2"), Container: "c"}
	if err := m.putRecord("n", whole); err != nil {
		t.Fatal(err)
	}
	if err := m.syncRecord("n", whole); err != nil {
		t.Fatal(err)
	}
	cut := netip.MustParseAddr("10.213.0.3")
	for _, content := range []string{"", `{"address":"10.2`, "\x00\x00"} {
		if err := os.WriteFile(filepath.Join(m.networkDir("n"), recordDir, cut.String()), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := m.records("n")
		if err != nil || len(all) != 1 || all[0].Container != "c" {
			t.Errorf("%q: %+v, %v", content, all, err)
		}
	}
}
