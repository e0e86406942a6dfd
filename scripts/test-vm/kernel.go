package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// metaPackage depends on the newest cloud kernel of the distribution.
const metaPackage = "linux-image-cloud-amd64"

// kernel is what can be booted.
type kernel struct {
	name    string // for people
	image   string // vmlinuz
	modules string // lib/modules/VERSION with its modules.dep, or "": all is built in
}

func findKernel(ctx context.Context, image, modules string) (kernel, error) {
	if image == "" {
		return debianKernel(ctx)
	}
	for _, path := range []string{image, modules} {
		if _, err := os.Stat(path); path != "" && err != nil {
			return kernel{}, err
		}
	}
	return kernel{name: image, image: image, modules: modules}, nil
}

// debianKernel unpacks the package that the meta package depends on, once.
func debianKernel(ctx context.Context) (kernel, error) {
	name, version, err := newestKernel(ctx)
	if err != nil {
		return kernel{}, fmt.Errorf("find Debian's cloud kernel (KERNEL=vmlinuz MODULES=folder choose another): %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil { // no HOME, as in some CI: beside what make builds
		cache = "bin"
	}
	dir := filepath.Join(cache, "naru-test-vm", name+"_"+version)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		err = unpackKernel(ctx, name+"="+version, dir)
		if err != nil {
			return kernel{}, err
		}
	}
	release := strings.TrimPrefix(name, "linux-image-")
	return kernel{
		name: "Linux " + release + " (" + version + ")", image: filepath.Join(dir, "boot/vmlinuz-"+release),
		modules: filepath.Join(dir, "lib/modules", release),
	}, nil
}

var (
	dependsOn = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-\S+)$`)
	candidate = regexp.MustCompile(`(?m)^\s*Candidate: ([^\s(]+)$`)
)

// newestKernel asks apt, with fresh lists if the present ones know nothing.
func newestKernel(ctx context.Context) (name, version string, err error) {
	for _, prepare := range [][]string{nil, {"apt-get", "update"}} {
		if prepare != nil {
			if _, err := output(ctx, prepare[0], prepare[1:]...); err != nil {
				return "", "", err
			}
		}
		depends, err := output(ctx, "apt-cache", "depends", metaPackage)
		if err != nil {
			continue
		}
		m := dependsOn.FindStringSubmatch(depends)
		if m == nil {
			continue
		}
		policy, err := output(ctx, "env", "LC_ALL=C", "apt-cache", "policy", m[1])
		if err != nil {
			return "", "", err
		}
		if v := candidate.FindStringSubmatch(policy); v != nil {
			return m[1], v[1], nil
		}
	}
	return "", "", fmt.Errorf("apt knows no %s", metaPackage)
}

// unpackKernel makes dir, whole or not at all.
func unpackKernel(ctx context.Context, packageVersion, dir string) error {
	fmt.Println("test-vm: downloading", packageVersion)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	// apt-get writes into the working directory; dpkg -x only unpacks: nothing of the package runs here.
	const script = `cd "$1"
apt-get -q -o APT::Sandbox::User=root download "$2" || { apt-get -q update && apt-get -q -o APT::Sandbox::User=root download "$2"; }
mkdir tree && dpkg -x ./*.deb tree && chmod 755 tree
depmod -b tree "$(ls tree/lib/modules)"`
	if _, err := output(ctx, "sh", "-ec", script, "sh", temp, packageVersion); err != nil {
		return err
	}
	err = os.Rename(filepath.Join(temp, "tree"), dir)
	if _, there := os.Stat(dir); there == nil { // somebody else was faster
		return nil
	}
	return err
}

// closure lists the files of modules and of all that they need, those first. A
// module that is not listed is built in.
func (k kernel) closure(names ...string) ([]string, error) {
	if k.modules == "" {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(k.modules, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("the folder of modules needs depmod's lists: %w", err)
	}
	needs := map[string][]string{} // file → files
	files := map[string]string{}   // name → file
	for line := range strings.Lines(string(text)) {
		file, deps, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[file] = strings.Fields(deps)
		name, _, _ := strings.Cut(filepath.Base(file), ".")
		files[strings.ReplaceAll(name, "-", "_")] = file
	}
	var list []string
	seen := map[string]bool{"": true}
	var add func(file string)
	add = func(file string) {
		if seen[file] {
			return
		}
		seen[file] = true
		for _, need := range needs[file] {
			add(need)
		}
		list = append(list, filepath.Join(k.modules, file))
	}
	for _, name := range names {
		add(files[name])
	}
	return list, nil
}
