package image

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// platform is what an image runs on. Words are GOOS's and GOARCH's.
type platform struct{ os, arch, variant string }

// parsePlatform reads "os/arch[/variant]"; empty: this machine's.
func parsePlatform(s string) (platform, error) {
	if s == "" {
		return platform{os: runtime.GOOS, arch: runtime.GOARCH}, nil
	}
	parts := strings.Split(strings.ToLower(s), "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return platform{}, fmt.Errorf("platform %q: want os/arch[/variant], such as linux/arm64", s)
	}
	p := platform{os: parts[0], arch: parts[1]}
	if len(parts) == 3 {
		p.variant = parts[2]
	}
	switch p.arch { // what uname says
	case "x86_64", "x86-64":
		p.arch = "amd64"
	case "aarch64":
		p.arch = "arm64"
	}
	if p.arch == "arm64" && p.variant == "v8" { // the only one there is for long
		p.variant = ""
	}
	return p, nil
}

func (p platform) String() string {
	return strings.TrimSuffix(p.os+"/"+p.arch+"/"+p.variant, "/")
}

// runs says whether something for o is what p asks for.
func (p platform) runs(o platform) bool {
	if o.arch == "arm64" && o.variant == "v8" {
		o.variant = ""
	}
	return p.os == o.os && p.arch == o.arch && (p.variant == "" || p.variant == o.variant)
}

// choose finds the manifest for p in an index: where several fit, the one
// without a variant, which runs everywhere, else the first.
func (p platform) choose(index []byte) (ocispec.Descriptor, error) {
	var list ocispec.Index
	if err := json.Unmarshal(index, &list); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read index: %w", err)
	}
	var fit, there []ocispec.Descriptor
	for _, desc := range list.Manifests {
		if isAttestation(desc) || desc.Platform == nil {
			continue
		}
		if err := checkDigest(desc.Digest); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("read index: %w", err)
		}
		there = append(there, desc)
		if p.runs(platformOf(desc)) {
			fit = append(fit, desc)
		}
	}
	if i := slices.IndexFunc(fit, func(d ocispec.Descriptor) bool { return d.Platform.Variant == p.variant }); i >= 0 {
		return fit[i], nil
	}
	if len(fit) > 0 {
		return fit[0], nil
	}
	return ocispec.Descriptor{}, fmt.Errorf("no image for %s; there is %s", p, platforms(there))
}

func platformOf(desc ocispec.Descriptor) platform {
	return platform{os: desc.Platform.OS, arch: desc.Platform.Architecture, variant: desc.Platform.Variant}
}

func platforms(list []ocispec.Descriptor) string {
	var names []string
	for _, desc := range list {
		names = append(names, platformOf(desc).String())
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// checkPlatform compares a config with what is wanted. An index was chosen
// from already, but a tag may name a single image of any platform: an error if
// the caller insisted on another, else a warning.
func checkPlatform(config []byte, want platform, insisted bool, out *progress) error {
	var cfg Config
	if err := json.Unmarshal(config, &cfg); err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	have := platform{os: cfg.OS, arch: cfg.Architecture, variant: cfg.Variant}
	if want.runs(have) || want.os == have.os && want.arch == have.arch && have.variant == "" {
		return nil
	}
	if insisted {
		return fmt.Errorf("it is for %s, not %s", have, want)
	}
	out.line("WARNING: the image is for %s, this machine is %s", have, want)
	return nil
}

// SplitPlatform takes "os/arch[/variant]" apart; "" has no parts.
func SplitPlatform(s string) (os, arch, variant string, err error) {
	if s == "" {
		return "", "", "", nil
	}
	p, err := parsePlatform(s)
	return p.os, p.arch, p.variant, err
}

// CheckPlatform says that an image is not for the platform s; "" is any.
func CheckPlatform(img Image, s string) error {
	if s == "" {
		return nil
	}
	want, err := parsePlatform(s)
	if err != nil {
		return err
	}
	if have := (platform{img.Config.OS, img.Config.Architecture, img.Config.Variant}); !want.runs(have) {
		return fmt.Errorf("it is for %s, not %s", have, want)
	}
	return nil
}
