package build

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"naru/sandbox/build/sbom"
	"naru/sandbox/image"
)

const (
	statementType  = "https://in-toto.io/Statement/v1"
	provenanceType = "https://slsa.dev/provenance/v1"
	// buildType names what the parameters of our provenance mean.
	buildType = "urn:naru:build:dockerfile:v1"
	builderID = "urn:naru:builder"
)

// statement is an in-toto statement (in-toto attestation spec, v1).
type statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// provenance is the predicate of SLSA provenance v1.
type provenance struct {
	BuildDefinition buildDefinition `json:"buildDefinition"`
	RunDetails      runDetails      `json:"runDetails"`
}

type buildDefinition struct {
	BuildType            string         `json:"buildType"`
	ExternalParameters   map[string]any `json:"externalParameters"`
	InternalParameters   map[string]any `json:"internalParameters,omitempty"`
	ResolvedDependencies []resource     `json:"resolvedDependencies"`
}

type resource struct {
	URI    string            `json:"uri"`
	Digest map[string]string `json:"digest"`
}

type runDetails struct {
	Builder  map[string]any `json:"builder"`
	Metadata map[string]any `json:"metadata"`
}

// attested is an image with the statements that were asked for. What they say
// is taken down now, but for the digest of the manifest.
func (b *build) attested(ctx context.Context, img image.Image) (image.Part, error) {
	part := image.Part{Image: img}
	if b.o.Provenance == "" && !b.o.SBOM {
		return part, nil
	}
	predicates := map[string]json.RawMessage{}
	if b.o.Provenance != "" {
		data, err := json.Marshal(b.provenance(time.Now()))
		if err != nil {
			return part, fmt.Errorf("provenance: %w", err)
		}
		predicates[provenanceType] = data
	}
	if b.o.SBOM {
		data, err := b.bill(ctx, img)
		if err != nil {
			return part, fmt.Errorf("sbom: %w", err)
		}
		predicates[sbom.PredicateType] = data
	}
	part.Attest = func(manifest digest.Digest) ([]image.Statement, error) {
		var list []image.Statement
		for _, kind := range slices.Sorted(maps.Keys(predicates)) {
			data, err := json.Marshal(statement{
				Type: statementType, PredicateType: kind, Subject: b.subjects(manifest), Predicate: predicates[kind],
			})
			if err != nil {
				return nil, err
			}
			list = append(list, image.Statement{PredicateType: kind, Data: data})
		}
		return list, nil
	}
	return part, nil
}

// subjects are the image under each of its names.
func (b *build) subjects(manifest digest.Digest) []subject {
	names := b.o.Tags
	for _, o := range b.o.Outputs {
		names = appendNew(slices.Clone(names), o.Names...)
	}
	sum := map[string]string{manifest.Algorithm().String(): manifest.Encoded()}
	var list []subject
	for _, name := range names {
		list = append(list, subject{imageURI(name, b.platform), sum})
	}
	if len(list) == 0 {
		list = []subject{{"_", sum}}
	}
	return list
}

// imageURI is the package URL of an image.
func imageURI(name string, t target) string {
	name, sum, pinned := strings.Cut(name, "@")
	version := ""
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, version = name[:i], "@"+name[i+1:]
	}
	q := url.Values{"platform": {t.String()}}
	if pinned {
		q.Set("digest", sum)
	}
	return "pkg:docker/" + name + version + "?" + q.Encode()
}

// provenance says how the image was made. With "min" the values of build
// arguments, which may be nobody's business, stay out; those of secrets are in
// neither.
func (b *build) provenance(ended time.Time) provenance {
	config := map[string]any{"path": b.name()}
	if b.fetched && len(b.materials) > 0 { // the context was fetched first
		config["uri"], config["digest"] = b.materials[0].URI, b.materials[0].Digest
	}
	request := map[string]any{"frontend": "dockerfile.v0", "platform": b.platform.String()}
	if b.o.Target != "" {
		request["target"] = b.o.Target
	}
	if names := slices.Sorted(maps.Keys(b.o.Contexts)); len(names) > 0 {
		request["contexts"] = names
	}
	p := provenance{
		BuildDefinition: buildDefinition{
			BuildType:            buildType,
			ExternalParameters:   map[string]any{"configSource": config, "request": request},
			ResolvedDependencies: b.dependencies(),
		},
		RunDetails: runDetails{Builder: map[string]any{"id": builderID}, Metadata: b.times(ended)},
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		p.RunDetails.Builder["version"] = map[string]string{"naru": info.Main.Version}
	}
	if b.o.Provenance == "max" {
		request["args"], request["labels"] = b.o.Args, b.o.Labels
		p.BuildDefinition.InternalParameters = map[string]any{
			"dockerfile": map[string]any{"digest": digest.FromBytes(b.file.text).String(), "source": string(b.file.text)},
			"network":    b.o.Network, "noCache": b.o.NoCache, "builderPlatform": native().String(),
		}
	}
	return p
}

// times are those of the build, or the one that SOURCE_DATE_EPOCH says.
func (b *build) times(ended time.Time) map[string]any {
	start := b.begun
	if b.epoch != nil {
		start, ended = *b.epoch, *b.epoch
	}
	return map[string]any{"startedOn": start.UTC().Format(time.RFC3339), "finishedOn": ended.UTC().Format(time.RFC3339)}
}

// dependencies are the base images, by the digest that their registry knows or,
// for those that were made here, that of their config.
func (b *build) dependencies() []resource {
	list := []resource{}
	for _, x := range b.bases.used() {
		d := x.Digest
		if d == "" {
			d = x.ID
		}
		t, err := parseTarget(x.Platform)
		if err != nil || d.Validate() != nil {
			continue // it was asked for and not found
		}
		list = append(list, resource{imageURI(x.Name, t), map[string]string{d.Algorithm().String(): d.Encoded()}})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return append(list, b.materials...)
}

// bill lists the software in an image.
func (b *build) bill(ctx context.Context, img image.Image) (data []byte, err error) {
	v := b.out.begin("listing the software in the image")
	defer func() { v.end(err) }()
	err = b.rootfs(img, func(tree *root) error {
		files, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", tree.fd))
		if err != nil {
			return err
		}
		defer files.Close() // read only: nothing can be lost
		list, err := sbom.Scan(ctx, files.FS())
		if err != nil {
			return err
		}
		for _, w := range list.Warnings {
			b.out.warn("sbom: " + w)
		}
		_, _ = fmt.Fprintf(v, "%d packages\n", len(list.Packages))
		at := b.begun
		if b.epoch != nil {
			at = *b.epoch
		}
		name := "image"
		if len(b.o.Tags) > 0 {
			name = b.o.Tags[0]
		}
		data, err = list.SPDX(name, at)
		return err
	})
	return data, err
}
