package configs

import (
	"embed"
	"encoding/json"
	"io/fs"
	"reflect"
	"strconv"
	"strings"
	"time"
)

//go:embed naru.yaml apps.d/web.yaml
var samples embed.FS

// Samples holds naru.yaml and apps.d/web.yaml, which use every key that is
// supported.
func Samples() fs.FS { return samples }

// Schema returns a JSON Schema (draft 2020-12) of both kinds of files, for
// editors: $defs/agent is naru.yaml, $defs/app is a file of apps.d. It follows the
// structs that decode the files. What needs more than one key to judge
// (domains without a port, say) is found only by Check.
func Schema() []byte {
	s := map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "naru configuration",
		"anyOf":   []any{map[string]any{"$ref": "#/$defs/agent"}, map[string]any{"$ref": "#/$defs/app"}},
		"$defs": map[string]any{
			"agent": schemaOf(reflect.TypeFor[agentFile](), ""),
			"app":   schemaOf(reflect.TypeFor[appFile](), ""),
		},
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic("configs: schema: " + err.Error()) // maps of plain values always marshal
	}
	return append(data, '\n')
}

func schemaOf(t reflect.Type, tag reflect.StructTag) map[string]any {
	if t.Kind() == reflect.Pointer {
		return schemaOf(t.Elem(), tag)
	}
	var s map[string]any
	switch t.Kind() {
	case reflect.Struct:
		s = objectSchema(t)
	case reflect.Map:
		s = map[string]any{"type": []string{"object", "null"}, "propertyNames": map[string]any{"pattern": tag.Get("keys")},
			"additionalProperties": schemaOf(t.Elem(), itemTag(tag))}
	case reflect.Slice:
		s = map[string]any{"type": []string{"array", "null"}, "items": schemaOf(t.Elem(), itemTag(tag))}
	default:
		s = scalarSchema(t, tag)
	}
	if doc := tag.Get("doc"); doc != "" {
		s["description"] = doc
	}
	if tag.Get("later") == "*" {
		s["description"] = tag.Get("doc") + " Not supported yet."
		if t.Kind() == reflect.Slice {
			s["maxItems"] = 0
		} else {
			s["const"] = ""
		}
	}
	return s
}

// itemTag keeps what of a list's or map's tag is about its items.
func itemTag(tag reflect.StructTag) reflect.StructTag {
	if match := tag.Get("match"); match != "" {
		return reflect.StructTag("match:" + strconv.Quote(match))
	}
	return ""
}

func objectSchema(t reflect.Type) map[string]any {
	properties := map[string]any{}
	required := []string{}
	for _, f := range fields(t) {
		properties[f.key] = schemaOf(t.Field(f.index).Type, f.tag)
		if f.tag.Get("required") != "" {
			required = append(required, f.key)
		}
	}
	return map[string]any{"type": []string{"object", "null"}, "properties": properties, "required": required, "additionalProperties": false}
}

func scalarSchema(t reflect.Type, tag reflect.StructTag) map[string]any {
	s := map[string]any{}
	if enum := tag.Get("enum"); enum != "" {
		s["enum"] = strings.Split(enum, "|")
	} else if match := tag.Get("match"); match != "" {
		s["pattern"] = match
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		s["type"], s["pattern"] = "string", `^([0-9.]+(ns|us|µs|ms|s|m|h))+$`
	case t == reflect.TypeFor[size]():
		s["type"], s["pattern"] = []string{"string", "integer"}, `^[0-9]+([kmgtKMGT]?([iI]?[bB])?)$`
	case t.Kind() == reflect.Int:
		s["type"] = "integer"
	case t.Kind() == reflect.Float64:
		s["type"] = "number"
	default:
		// Unquoted numbers and booleans are taken as the text they are written as.
		s["type"] = []string{"string", "number", "boolean"}
	}
	if s["type"] == "integer" || s["type"] == "number" {
		for name, text := range map[string]string{"minimum": tag.Get("min"), "maximum": tag.Get("max"), "default": tag.Get("default")} {
			if text != "" {
				s[name] = json.Number(text)
			}
		}
	} else if text := tag.Get("default"); text != "" {
		s["default"] = text
	}
	return s
}
