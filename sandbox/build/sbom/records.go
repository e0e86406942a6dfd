package sbom

import (
	"debug/buildinfo"
	"encoding/json"
	"io"
	"strings"
)

func (s *scanner) release(_ string, data []byte) error {
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			s.list.Distro = value
		case "VERSION_ID":
			s.list.Release = value
		}
	}
	return nil
}

// fields splits a file of "Key: value" paragraphs (deb-control(5)); lines that
// go on an earlier one are left out.
func fields(text string) []map[string]string {
	var all []map[string]string
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		m := map[string]string{}
		for line := range strings.Lines(paragraph) {
			key, value, ok := strings.Cut(line, ":")
			if !ok || strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t") {
				continue
			}
			if _, seen := m[key]; !seen {
				m[key] = strings.TrimSpace(value)
			}
		}
		if len(m) > 0 {
			all = append(all, m)
		}
	}
	return all
}

func (s *scanner) dpkg(name string, data []byte) error {
	for _, m := range fields(string(data)) {
		if status := m["Status"]; status != "" && !strings.HasSuffix(status, " installed") {
			continue // its files are gone
		}
		s.add(Package{Kind: "deb", Name: m["Package"], Version: m["Version"], Arch: m["Architecture"], Supplier: m["Maintainer"], Found: name})
	}
	return nil
}

func (s *scanner) apk(name string, data []byte) error {
	for _, m := range fields(string(data)) {
		s.add(Package{Kind: "apk", Name: m["P"], Version: m["V"], Arch: m["A"], License: m["L"], Supplier: m["m"], Found: name})
	}
	return nil
}

func (s *scanner) python(name string, data []byte) error {
	head, _, _ := strings.Cut(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n\n")
	list := fields(head)
	if len(list) == 0 || list[0]["Name"] == "" {
		return errNoName
	}
	m := list[0]
	license := m["License-Expression"]
	if license == "" {
		license = m["License"]
	}
	s.add(Package{Kind: "pypi", Name: m["Name"], Version: m["Version"], License: license, Supplier: m["Author"], Found: name})
	return nil
}

func (s *scanner) npm(name string, data []byte) error {
	var p struct {
		Name, Version string
		License       any
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	if p.Version == "" {
		return nil // a directory of a package, not one itself
	}
	license, _ := p.License.(string)
	s.add(Package{Kind: "npm", Name: p.Name, Version: p.Version, License: license, Found: name})
	return nil
}

// program lists the modules that a Go program was built from.
func (s *scanner) program(name string) error {
	f, err := s.tree.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() // read only: nothing can be lost
	at, ok := f.(io.ReaderAt)
	if !ok {
		return nil
	}
	magic := make([]byte, 4)
	if _, err := at.ReadAt(magic, 0); err != nil || string(magic) != "\x7fELF" {
		return nil
	}
	info, err := buildinfo.Read(at)
	if err != nil {
		return nil // not a Go program
	}
	s.add(Package{Kind: "golang", Name: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go"), Found: name})
	s.add(Package{Kind: "golang", Name: info.Main.Path, Version: info.Main.Version, Found: name})
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		s.add(Package{Kind: "golang", Name: m.Path, Version: m.Version, Found: name})
	}
	return nil
}
