// Package sbom lists the software in a file tree, and writes the list as SPDX
// 2.3. It reads the records that package managers leave (dpkg, apk, Python's
// dist-info and egg-info, npm's package.json) and what the go command writes
// into programs; it looks at no code and asks nobody. RPM databases are not
// read: Scan says so instead of giving a list that looks complete.
//
// The tree may come from anyone: only regular files are opened, each up to a
// limit, and no link is followed.
package sbom

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Package is one piece of software.
type Package struct {
	Kind     string // of its package manager, as in package URLs: deb, apk, golang, npm, pypi
	Name     string
	Version  string
	Arch     string
	License  string // as its record says; "": it does not
	Supplier string
	Found    string // the file that tells of it
}

// List is what Scan has found.
type List struct {
	Distro   string // ID of /etc/os-release
	Release  string // its VERSION_ID
	Packages []Package
	// Warnings name what is there and was not read.
	Warnings []string
}

const (
	maxRecord   = 64 << 20 // bytes of a package manager's file
	maxProgram  = 1 << 30
	maxPackages = 200_000
)

// Scan walks a tree. What it finds does not depend on the order of directories.
func Scan(ctx context.Context, tree fs.FS) (List, error) {
	s := scanner{ctx: ctx, tree: tree}
	if err := fs.WalkDir(tree, ".", s.visit); err != nil {
		return List{}, fmt.Errorf("list software: %w", err)
	}
	slices.SortFunc(s.list.Packages, func(a, b Package) int { return strings.Compare(a.key(), b.key()) })
	s.list.Packages = slices.CompactFunc(s.list.Packages, func(a, b Package) bool { return a.purl(s.list) == b.purl(s.list) })
	slices.Sort(s.list.Warnings)
	s.list.Warnings = slices.Compact(s.list.Warnings)
	return s.list, nil
}

func (p Package) key() string {
	return strings.Join([]string{p.Kind, p.Name, p.Version, p.Arch, p.Found}, "\x00")
}

type scanner struct {
	ctx  context.Context
	tree fs.FS
	list List
}

func (s *scanner) visit(name string, d fs.DirEntry, err error) error {
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	if len(s.list.Packages) > maxPackages {
		return fmt.Errorf("more than %d packages", maxPackages)
	}
	if d.IsDir() && (name == "proc" || name == "sys" || name == "dev") {
		return fs.SkipDir
	}
	if !d.Type().IsRegular() {
		return nil
	}
	if read := readerOf(name); read != nil {
		return s.record(name, read)
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	if info.Mode()&0o111 != 0 && info.Size() > 64<<10 && info.Size() < maxProgram {
		return s.program(name)
	}
	return nil
}

// reader takes the packages out of a record.
type reader func(s *scanner, name string, data []byte) error

func readerOf(name string) reader {
	dir, base := path.Split(name)
	switch {
	case name == "etc/os-release" || name == "usr/lib/os-release":
		return (*scanner).release
	case name == "var/lib/dpkg/status", dir == "var/lib/dpkg/status.d/" && !strings.HasSuffix(base, ".md5sums"):
		return (*scanner).dpkg
	case strings.HasSuffix(name, "lib/apk/db/installed"):
		return (*scanner).apk
	case strings.HasSuffix(dir, ".dist-info/") && base == "METADATA", strings.HasSuffix(dir, ".egg-info/") && base == "PKG-INFO":
		return (*scanner).python
	case base == "package.json" && strings.Contains("/"+dir, "/node_modules/"):
		return (*scanner).npm
	case strings.HasPrefix(name, "var/lib/rpm/"), strings.HasPrefix(name, "usr/lib/sysimage/rpm/"):
		return (*scanner).rpm
	}
	return nil
}

func (s *scanner) record(name string, read reader) error {
	f, err := s.tree.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() // read only: nothing can be lost
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return err
	}
	if len(data) > maxRecord {
		s.warn("%s is too large to be read", name)
		return nil
	}
	if err := read(s, name, data); err != nil {
		s.warn("%s: %v", name, err)
	}
	return nil
}

func (s *scanner) warn(format string, args ...any) {
	s.list.Warnings = append(s.list.Warnings, fmt.Sprintf(format, args...))
}

func (s *scanner) add(p Package) {
	if p.Name != "" {
		s.list.Packages = append(s.list.Packages, p)
	}
}

func (s *scanner) rpm(name string, _ []byte) error {
	s.warn("%s: the packages of RPM databases are not listed", path.Dir(name))
	return nil
}

var errNoName = errors.New("it names no package")
