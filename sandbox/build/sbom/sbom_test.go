package sbom

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func TestScan(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text), Mode: 0o644} }
	tree := fstest.MapFS{
		"etc/os-release":       file("NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n"),
		"var/lib/dpkg/status":  file("Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2:2.36-9\nMaintainer: Team <a@b>\nDescription: text\n Package: not this\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n"),
		"lib/apk/db/installed": file("P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\n\n"),
		"usr/lib/python3/dist-packages/Foo_Bar-1.dist-info/METADATA": file("Metadata-Version: 2.1\nName: Foo_Bar\nVersion: 1.0\nLicense: MIT\n\nVersion: 9\n"),
		"app/node_modules/@scope/pkg/package.json":                   file(`{"name":"@scope/pkg","version":"3.0.0","license":"MIT"}`),
		"app/node_modules/@scope/pkg/test/fixture/package.json":      file(`{"type":"module"}`),
		"app/node_modules/bad/package.json":                          file(`{`),
		"app/package.json":                                           file(`{"name":"app","version":"1"}`),
		"var/lib/rpm/rpmdb.sqlite":                                   file("x"),
		"bin/prog":                                                   {Data: program, Mode: 0o755},
	}
	list, err := Scan(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	data, err := list.SPDX("image", time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	var purls []string
	for _, p := range doc.Packages[1:] {
		purls = append(purls, p.ExternalRefs[0].Locator)
	}
	for _, want := range []string{
		"pkg:deb/debian/libc6@2%3A2.36-9?arch=amd64&distro=debian-12", "pkg:apk/debian/musl@1.2.5-r0?arch=x86_64&distro=debian-12",
		"pkg:pypi/foo-bar@1.0", "pkg:npm/%40scope/pkg@3.0.0",
	} {
		if !slices.Contains(purls, want) {
			t.Errorf("no %s in %q", want, purls)
		}
	}
	if !strings.Contains(strings.Join(purls, "\n"), "pkg:golang/stdlib@1") {
		t.Errorf("no Go program in %q", purls)
	}
	if text := strings.Join(list.Warnings, "\n"); !strings.Contains(text, "RPM") || !strings.Contains(text, "bad/package.json") {
		t.Error(text)
	}
	if strings.Contains(string(data), "gone") || len(purls) != len(slices.Compact(slices.Sorted(slices.Values(purls)))) {
		t.Errorf("%q", purls)
	}
	again, err := list.SPDX("image", time.Unix(1, 0))
	if err != nil || string(again) != string(data) {
		t.Error("not the same twice")
	}
}
