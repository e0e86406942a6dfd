package image

import (
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Step is one step of an image's history.
type Step struct {
	Created   time.Time     `json:"created,omitzero"`
	CreatedBy string        `json:"created_by"`
	Comment   string        `json:"comment,omitempty"`
	Layer     digest.Digest `json:"layer,omitempty"` // empty: it made none
	Size      int64         `json:"size"`            // of the layer's uncompressed tar
}

// History lists the steps that made an image, the last one first. Layers that
// its history does not tell of come as steps of their own.
func (s *Store) History(img Image) ([]Step, error) {
	infos, _, err := s.useLayers(img.Layers)
	if err != nil {
		return nil, fmt.Errorf("history of image %s: %w", img.ID, err)
	}
	var steps []Step
	for _, h := range img.Config.History {
		step := Step{CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			step.Created = *h.Created
		}
		if !h.EmptyLayer && len(infos) > 0 {
			step.Layer, step.Size = infos[0].DiffID, infos[0].Size
			infos = infos[1:]
		}
		steps = append(steps, step)
	}
	for _, info := range infos {
		steps = append(steps, Step{Layer: info.DiffID, Size: info.Size})
	}
	slices.Reverse(steps)
	return steps, nil
}
