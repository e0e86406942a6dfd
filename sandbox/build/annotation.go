package build

import (
	"fmt"
	"slices"
	"strings"

	"naru/sandbox/image"
)

// annotation is one of buildx's --annotation (docs.docker.com,
// build/metadata/annotations).
type annotation struct {
	of         string // manifest, index, manifest-descriptor or index-descriptor
	platform   target // zero: all
	key, value string
}

var annotated = []string{"manifest", "index", "manifest-descriptor", "index-descriptor"}

// parseAnnotations reads "[TYPE[,TYPE][[PLATFORM]]:]KEY=VALUE"; without a type it is
// the manifest's.
func parseAnnotations(texts []string) (list []annotation, err error) {
	for _, text := range texts {
		left, value, ok := strings.Cut(text, "=")
		types, key, typed := strings.Cut(left, ":")
		if !typed {
			types, key = "manifest", left
		}
		if !ok || key == "" {
			return nil, fmt.Errorf("annotation %q: want KEY=VALUE or TYPE:KEY=VALUE", text)
		}
		for kind := range strings.SplitSeq(types, ",") {
			a := annotation{key: key, value: value}
			kind, platform, of := strings.Cut(kind, "[")
			if a.of = kind; !slices.Contains(annotated, kind) {
				return nil, fmt.Errorf("annotation %q: type %q is not known: %s are", text, kind, strings.Join(annotated, ", "))
			}
			if of {
				if a.platform, err = parseTarget(strings.TrimSuffix(platform, "]")); err != nil {
					return nil, fmt.Errorf("annotation %q: %w", text, err)
				}
				if strings.HasPrefix(kind, "index") {
					return nil, fmt.Errorf("annotation %q: an index is for all platforms", text)
				}
			}
			list = append(list, a)
		}
	}
	return list, nil
}

// outputAnnotation is an attribute of --output: "annotation.KEY",
// "annotation-TYPE.KEY" or "annotation-TYPE[PLATFORM].KEY".
func outputAnnotation(key, value string) (text string, ok bool) {
	rest, ok := strings.CutPrefix(key, "annotation")
	if !ok {
		return "", false
	}
	kind, name, ok := strings.Cut(rest, ".")
	if !ok || kind != "" && kind[0] != '-' && kind[0] != '[' {
		return "", false
	}
	if kind = strings.TrimPrefix(kind, "-"); kind == "" || kind[0] == '[' {
		kind = "manifest" + kind
	}
	return kind + ":" + name + "=" + value, true
}

// checkAnnotations refuses those that there will be no place for.
func (o Options) checkAnnotations(index bool) error {
	for _, out := range append(slices.Clone(o.Outputs), Output{Type: "image"}) {
		list, err := parseAnnotations(append(slices.Clone(o.Annotations), out.Annotations...))
		if err != nil {
			return fmt.Errorf("build: %w", err)
		}
		for _, a := range list {
			switch {
			case strings.HasPrefix(a.of, "index") && !index:
				return fmt.Errorf("build: annotation %s:%s: there is an index only of several platforms, or with provenance or SBOM", a.of, a.key)
			case a.of == "manifest-descriptor" && !index && out.Push:
				return fmt.Errorf("build: annotation %s:%s: nothing describes the manifest at a registry but an index", a.of, a.key)
			case a.of == "index-descriptor" && out.Push:
				return fmt.Errorf("build: annotation %s:%s: nothing describes the index at a registry", a.of, a.key)
			}
		}
	}
	return nil
}

// annotate adds the annotations of an output to what it gets.
func (o Options) annotate(out Output, b image.Bundle) (image.Bundle, error) {
	list, err := parseAnnotations(append(slices.Clone(o.Annotations), out.Annotations...))
	if err != nil {
		return b, err
	}
	b.Parts = slices.Clone(b.Parts)
	for _, a := range list {
		switch a.of {
		case "index":
			b.Annotations = a.in(b.Annotations)
		case "index-descriptor":
			b.Entry = a.in(b.Entry)
		default:
			for i := range b.Parts {
				p := &b.Parts[i]
				c := p.Image.Config
				if a.platform != (target{}) && a.platform != (target{c.OS, c.Architecture, c.Variant}) {
					continue
				}
				if a.of == "manifest" {
					p.Annotations = a.in(p.Annotations)
				} else {
					p.Entry = a.in(p.Entry)
				}
			}
		}
	}
	return b, nil
}

func (a annotation) in(m map[string]string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[a.key] = a.value
	return m
}
