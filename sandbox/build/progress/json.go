package progress

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"strconv"
	"time"
)

// rawJSON writes events as BuildKit's SolveStatus (client/graph.go), one to a
// line, for programs that read that of buildx.
type rawJSON struct {
	out   *json.Encoder
	steps map[int]vertexJSON
}

type statusJSON struct {
	Vertexes []vertexJSON  `json:"vertexes,omitempty"`
	Logs     []logJSON     `json:"logs,omitempty"`
	Warnings []warningJSON `json:"warnings,omitempty"`
}

type vertexJSON struct {
	Digest    string     `json:"digest"`
	Name      string     `json:"name"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
	Cached    bool       `json:"cached,omitempty"`
	Error     string     `json:"error,omitempty"`
}

type logJSON struct {
	Vertex    string    `json:"vertex"`
	Stream    int       `json:"stream"`
	Data      []byte    `json:"data"`
	Timestamp time.Time `json:"timestamp"`
}

type warningJSON struct {
	Vertex string `json:"vertex,omitempty"`
	Level  int    `json:"level"`
	Short  []byte `json:"short"`
}

func newJSON(out io.Writer) *rawJSON {
	return &rawJSON{json.NewEncoder(out), map[int]vertexJSON{}}
}

// Event writes one line, if SolveStatus can say it.
func (j *rawJSON) Event(e Event) {
	v := j.steps[e.Step]
	status := statusJSON{}
	switch e.Kind {
	case Started:
		sum := sha256.Sum256([]byte(strconv.Itoa(e.Step) + " " + e.Name))
		v = vertexJSON{Digest: "sha256:" + hex.EncodeToString(sum[:]), Name: e.Name, Started: &e.Time}
	case Cached, Done:
		v.Completed, v.Cached = &e.Time, e.Kind == Cached
	case Failed, Canceled:
		v.Completed, v.Error = &e.Time, e.Text
		if e.Kind == Canceled {
			v.Error = "context canceled"
		}
	case Output:
		if !e.Partial {
			status.Logs = []logJSON{{v.Digest, 1, []byte(e.Text + "\n"), e.Time}}
		}
	case Warning:
		status.Warnings = []warningJSON{{v.Digest, 1, []byte(e.Text)}}
	}
	if status.Logs == nil && status.Warnings == nil {
		if e.Step == 0 || e.Partial {
			return
		}
		j.steps[e.Step] = v
		status.Vertexes = []vertexJSON{v}
	}
	_ = j.out.Encode(status) // a log that cannot be written stops no build
}

// Close has nothing to add.
func (j *rawJSON) Close() {}
