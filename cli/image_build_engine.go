package cli

import (
	"encoding/json"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"naru/sandbox/build"
)

// engineFlags are the flags of build about what is built, kept and given out.
type engineFlags struct {
	contexts, outputs, attest   []string
	push, load                  bool
	limit, metadata, sbom, slsa string
}

func (f *engineFlags) add(flags *pflag.FlagSet, o *build.Options) {
	flags.StringArrayVar(&f.contexts, "build-context", nil, "another context or image, NAME=DIR or NAME=URL or NAME=docker-image://REF or NAME=oci-layout://DIR:TAG")
	flags.StringSliceVar(&o.Platforms, "platform", nil, "platform to build for, such as linux/arm64; several make an index")
	flags.StringSliceVar(&o.NoCacheFilter, "no-cache-filter", nil, "stage whose steps all run")
	flags.BoolVar(&o.Pull, "pull", false, "ask registries for base images that are here too")
	flags.IntVar(&o.Parallel, "parallel", 0, "RUN steps at once (default: one for each processor, at least 4)")
	flags.StringVar(&f.limit, "cache-limit", "", "how much the build cache may take on disk, such as 5g")
	flags.StringArrayVar(&o.CacheFrom, "cache-from", nil, "cache to begin from: type=local,src=DIR or type=registry,ref=NAME")
	flags.StringArrayVar(&o.CacheTo, "cache-to", nil, "where to leave the cache: type=local,dest=DIR, type=registry,ref=NAME or type=inline")
	flags.StringArrayVarP(&f.outputs, "output", "o", nil, "where the image goes: type=image|registry|docker|oci|tar|local,dest=PATH")
	flags.BoolVar(&f.push, "push", false, "push the image: -o type=registry")
	flags.BoolVar(&f.load, "load", false, "keep the image: -o type=image, the default")
	flags.StringVar(&f.metadata, "metadata-file", "", "write digests and names to this file, as JSON")
	flags.StringVar(&f.slsa, "provenance", "", "attach how the image was made: true, mode=min, mode=max or false")
	flags.StringVar(&f.sbom, "sbom", "", "attach what is in the image: true or false")
	flags.StringArrayVar(&f.attest, "attest", nil, "type=sbom or type=provenance[,mode=max]")
	flags.StringArrayVar(&o.Annotations, "annotation", nil, "annotation of the image's manifest, KEY=VALUE, or TYPE:KEY=VALUE for manifest, index, manifest-descriptor, index-descriptor")
	flags.Lookup("provenance").NoOptDefVal, flags.Lookup("sbom").NoOptDefVal = "true", "true"
}

func (f *engineFlags) complete(env *Env, o *build.Options) (err error) {
	if o.CacheLimit, err = parseSize(f.limit); err != nil {
		return err
	}
	o.Contexts = map[string]string{}
	for _, c := range f.contexts {
		name, value, ok := strings.Cut(c, "=")
		if !ok {
			return usage("--build-context %s: want NAME=VALUE", c)
		}
		o.Contexts[name] = value
	}
	if f.push {
		f.outputs = append(f.outputs, "type=registry")
	}
	if f.load {
		f.outputs = append(f.outputs, "type=image")
	}
	for _, text := range f.outputs {
		out, err := build.ParseOutput(text)
		if err != nil {
			return usage("%v", err)
		}
		out.W = env.Stdout
		o.Outputs = append(o.Outputs, out)
	}
	return f.attestations(o)
}

// attestations reads --provenance, --sbom and --attest.
func (f *engineFlags) attestations(o *build.Options) error {
	list := f.attest
	if f.slsa != "" {
		list = append(list, "type=provenance,"+strings.TrimPrefix(f.slsa, "type=provenance,"))
	}
	if f.sbom != "" {
		list = append(list, "type=sbom,"+f.sbom)
	}
	for _, text := range list {
		kind, mode, off := "", "min", false
		for part := range strings.SplitSeq(text, ",") {
			key, value, _ := strings.Cut(part, "=")
			switch {
			case key == "type":
				kind = value
			case key == "mode" && kind == "provenance":
				mode = value
			case part == "false", part == "disabled=true":
				off = true
			case part == "true", part == "disabled=false", part == "version=v1" && kind == "provenance":
			default:
				return usage("attestation %q: %s is not supported", text, part)
			}
		}
		switch kind {
		case "provenance":
			if o.Provenance = mode; off {
				o.Provenance = ""
			}
		case "sbom":
			o.SBOM = !off
		default:
			return usage("attestation %q: type %q is not known: provenance and sbom are", text, kind)
		}
	}
	return nil
}

// done writes --metadata-file.
func (f *engineFlags) done(r build.Result) error {
	if f.metadata == "" {
		return nil
	}
	data, err := json.MarshalIndent(r.Metadata(), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(f.metadata, append(data, '\n'), 0o644)
}
