package image

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	// ErrNotFound says that no image here has this name, id or digest. It may
	// be pulled.
	ErrNotFound = errors.New("image not found")
	// ErrAmbiguous says that an id prefix fits more than one image; a longer
	// one may fit one.
	ErrAmbiguous = errors.New("id prefix fits several images")
	// ErrLayerNotFound says that a layer is not, or no longer, in the store.
	// A build cache should treat it as a miss.
	ErrLayerNotFound = errors.New("layer not found")
	// ErrSeveralNames says that an image was to be removed by its id while it
	// has more than one name; force removes it with all of them.
	ErrSeveralNames = errors.New("image has several names")
)

// Config is the document an image's id is the digest of: the OCI image
// configuration (image-spec, config.md) with the three fields that Docker adds
// to it. It marshals to the JSON that Docker writes and reads.
type Config struct {
	Created      *time.Time `json:"created,omitempty"`
	Author       string     `json:"author,omitempty"`
	Architecture string     `json:"architecture"` // GOARCH
	Variant      string     `json:"variant,omitempty"`
	OS           string     `json:"os"` // GOOS
	OSVersion    string     `json:"os.version,omitempty"`
	OSFeatures   []string   `json:"os.features,omitempty"`
	// BuildCache is what a build has left for others to go on from: inline, or in
	// an image that is nothing but that.
	BuildCache json.RawMessage `json:"naru.buildcache.v1,omitempty"`
	// Config says how to run a container of the image.
	Config RunConfig `json:"config"`
	// RootFS lists the diff ids of the layers, bottom first. Put fills it.
	RootFS ocispec.RootFS `json:"rootfs"`
	// History has one entry for each step that made the image.
	History []ocispec.History `json:"history,omitempty"`
}

// RunConfig says how to run a container of an image: OCI's fields (User, Env,
// Entrypoint, Cmd, Volumes, WorkingDir, Labels, StopSignal, ExposedPorts) and
// Docker's.
type RunConfig struct {
	ocispec.ImageConfig
	// Healthcheck is what HEALTHCHECK said; nil: nothing, inherit.
	Healthcheck *Healthcheck `json:",omitempty"`
	// OnBuild holds the instructions that a build FROM this image runs first.
	OnBuild []string `json:",omitempty"`
	// Shell is the shell of the shell forms; empty: /bin/sh -c.
	Shell []string `json:",omitempty"`
}

// Healthcheck is Docker's HealthcheckConfig. Durations are nanoseconds in JSON;
// zero means "inherit" or the default.
type Healthcheck struct {
	// Test is {}: inherit, {"NONE"}: off, {"CMD", args...}: exec,
	// {"CMD-SHELL", command}: run by the shell.
	Test          []string      `json:",omitempty"`
	Interval      time.Duration `json:",omitempty"`
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

// Image is one image of the store.
type Image struct {
	// ID is the digest of the config.
	ID digest.Digest
	// Manifest is the digest of the manifest it was pulled or loaded with, or
	// of the one that Save writes.
	Manifest digest.Digest
	// Names are the names that point to it, sorted, in Docker's short form
	// ("debian:12", "ghcr.io/a/b:1", "debian@sha256:…"). May be empty.
	Names []string
	// Digests are what registries call it, sorted: "debian@sha256:…" with the
	// digest of the index or manifest that a pull or push of a name had.
	Digests []string
	// Config is the parsed config.
	Config Config
	// Size is the sum of the uncompressed layer tars in bytes.
	Size int64
	// Layers are the diff ids, bottom first.
	Layers []digest.Digest
}
