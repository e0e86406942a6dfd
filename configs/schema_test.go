package configs

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// definition returns one of the two schemas as decoded JSON.
func definition(t *testing.T, name string) map[string]any {
	t.Helper()
	var s struct {
		Defs map[string]map[string]any `json:"$defs"`
	}
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	if s.Defs[name] == nil {
		t.Fatalf("no $defs/%s", name)
	}
	return s.Defs[name]
}

// invalid is a validator for the few words of JSON Schema that Schema uses; it
// returns what does not fit, and fails on a word it does not know.
func invalid(t *testing.T, schema map[string]any, at string, v any) []string {
	t.Helper()
	var wrong []string
	refuse := func(format string, args ...any) { wrong = append(wrong, at+": "+fmt.Sprintf(format, args...)) }
	for word, want := range schema {
		switch word {
		case "description", "default", "additionalProperties": // the last: below
		case "type":
			if !slices.Contains(words(want), typeOf(v)) && !(typeOf(v) == "integer" && slices.Contains(words(want), "number")) {
				refuse("%s is not %v", typeOf(v), want)
			}
		case "enum":
			if !slices.Contains(want.([]any), v) {
				refuse("%v is not in %v", v, want)
			}
		case "const":
			if v != want {
				refuse("%v is not %v", v, want)
			}
		case "pattern":
			if text, ok := v.(string); ok && !regexp.MustCompile(want.(string)).MatchString(text) {
				refuse("%q does not match %s", text, want)
			}
		case "minimum", "maximum":
			if n, ok := v.(int); ok && (float64(n) < want.(float64)) == (word == "minimum") && float64(n) != want.(float64) {
				refuse("%d: %s %v", n, word, want)
			}
		case "maxItems":
			if list, ok := v.([]any); ok && len(list) > int(want.(float64)) {
				refuse("too many items")
			}
		case "required":
			for _, key := range words(want) {
				if m, ok := v.(map[string]any); ok && m[key] == nil {
					refuse("%s is missing", key)
				}
			}
		case "items":
			list, _ := v.([]any)
			for i, item := range list {
				wrong = append(wrong, invalid(t, want.(map[string]any), fmt.Sprintf("%s[%d]", at, i), item)...)
			}
		case "properties", "propertyNames":
		default:
			t.Errorf("unknown word %q in the schema", word)
		}
	}
	m, _ := v.(map[string]any)
	properties, _ := schema["properties"].(map[string]any)
	for key, item := range m {
		child, ok := properties[key].(map[string]any)
		if !ok {
			child, ok = schema["additionalProperties"].(map[string]any)
		}
		if !ok {
			refuse("unknown %s", key)
			continue
		}
		wrong = append(wrong, invalid(t, child, at+"."+key, item)...)
	}
	return wrong
}

func words(v any) []string {
	if one, ok := v.(string); ok {
		return []string{one}
	}
	var all []string
	for _, w := range v.([]any) {
		all = append(all, w.(string))
	}
	return all
}

func typeOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case bool:
		return "boolean"
	case int:
		return "integer"
	case float64:
		return "number"
	case []any:
		return "array"
	default:
		return "object"
	}
}

func load1(t *testing.T, data []byte) any {
	t.Helper()
	var v any
	if err := yaml.Load(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSamplesFitTheSchema(t *testing.T) {
	for name, file := range map[string]string{"agent": "naru.yaml", "app": "apps.d/web.yaml"} {
		data, err := fs.ReadFile(Samples(), file)
		if err != nil {
			t.Fatal(err)
		}
		if wrong := invalid(t, definition(t, name), "", load1(t, data)); len(wrong) > 0 {
			t.Errorf("%s: %v", file, wrong)
		}
	}
}

func TestSchemaRefuses(t *testing.T) {
	for _, c := range []struct{ name, old, new string }{
		{"an unknown key", "name: web", "name: web\nnmae: x"},
		{"a missing key", "name: web", ""},
		{"a wrong word", "name: web", "name: web\ntarget: moon"},
		{"a bad name", "name: web", "name: Web"},
		{"a wrong type", "port: 8080", "port: x"},
		{"a limit", "port: 8080", "port: 80800"},
		{"a duration", "port: 8080", "port: 8080, stop: {grace: soon}"},
		{"what is not supported", "name: web", "name: web\nsecrets: [A]"},
	} {
		data := []byte(strings.Replace(minimal, c.old, c.new, 1))
		if wrong := invalid(t, definition(t, "app"), "", load1(t, data)); len(wrong) == 0 {
			t.Errorf("%s passes the schema", c.name)
		}
		if _, err := ParseApp("x", data); err == nil {
			t.Errorf("%s passes the decoder", c.name)
		}
	}
}

// TestShapes checks the tags themselves: every key is named and described once,
// every default and limit can be read, and every default is allowed.
func TestShapes(t *testing.T) {
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		seen := map[string]bool{}
		for _, f := range fields(typ) {
			where := typ.Name() + "." + f.key
			if f.key == "" || seen[f.key] || f.tag.Get("doc") == "" {
				t.Errorf("%s: key or doc is missing, or the key is there twice", where)
			}
			seen[f.key] = true
			ft := typ.Field(f.index).Type
			if text := f.tag.Get("default"); text != "" {
				v := reflect.New(ft).Elem()
				if err := setScalar(v, text); err != nil {
					t.Errorf("%s: default: %v", where, err)
				} else if message := checkScalar(v, f.tag); message != "" {
					t.Errorf("%s: default: %s", where, message)
				}
			}
			if ft.Kind() == reflect.Map && f.tag.Get("keys") == "" {
				t.Errorf("%s: a map without keys", where)
			}
			for ft.Kind() == reflect.Map || ft.Kind() == reflect.Slice || ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			if ft.Kind() == reflect.Struct {
				walk(ft)
			}
		}
	}
	walk(reflect.TypeFor[agentFile]())
	walk(reflect.TypeFor[appFile]())
}
