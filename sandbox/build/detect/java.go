package detect

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// javaData is what java.tmpl needs.
type javaData struct {
	Build, Run string
	Package    string // makes the jar
	Cache      string
	Jars       string // directory with the jar, a pattern of find's -path
	Layers     string // "tools", "layertools": Spring Boot's; "quarkus"; "": one jar
	Command    []string
	Port       int
}

var (
	pomJava    = regexp.MustCompile(`<(?:java\.version|maven\.compiler\.release|maven\.compiler\.target|maven\.compiler\.source|release)>\s*(?:1\.)?(\d+)\s*<`)
	gradleJava = regexp.MustCompile(`(?:JavaLanguageVersion\.of\(\s*|(?:source|target)Compatibility\s*=?\s*(?:JavaVersion\.VERSION_(?:1_)?|['"]?(?:1\.)?)|jvmToolchain\(\s*|options\.release(?:\.set\(|\s*=)\s*)(\d+)`)
	pomBoot    = regexp.MustCompile(`(?s)<artifactId>spring-boot-(?:starter-parent|dependencies|maven-plugin)</artifactId>\s*<version>\s*(\d[\w.-]*)`)
	gradleBoot = regexp.MustCompile(`org\.springframework\.boot['"]\s*\)?\s*version\s*\(?\s*['"](\d[\w.-]*)`)
	wrapper    = regexp.MustCompile(`(?m)^distributionUrl=.*gradle-(\d+)(?:\.\d+)*-`)
)

func java(t tree) (*Plan, error) {
	p := &Plan{Kind: "Java", Port: 8080}
	d := javaData{Port: p.Port, Jars: "*/target/*"}
	text, bootVersion := "", ""
	if pom := t.read("pom.xml"); pom != "" {
		text = pom
		bootVersion = submatch(pomBoot, pom)
		line := javaLine(submatch(pomJava, pom))
		d.Run = image(javaRun, line)
		t.maven(p, &d, line)
	} else if file := t.first("build.gradle", "build.gradle.kts"); file != "" {
		text = t.read(file)
		d.Jars = "*/build/libs/*"
		bootVersion = submatch(gradleBoot, text+t.read("settings.gradle")+t.read("settings.gradle.kts"))
		line := javaLine(submatch(gradleJava, text))
		d.Run = image(javaRun, line)
		t.gradle(p, &d, file, line)
	} else {
		return nil, nil
	}
	boot := strings.Contains(text, "org.springframework.boot")
	switch {
	case strings.Contains(text, "io.quarkus"):
		d.Layers, d.Command = "quarkus", []string{"java", "-XX:MaxRAMPercentage=75", "-jar", "quarkus-run.jar"}
		d.Jars = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(d.Jars, "*/"), "/*"), "/libs") + "/quarkus-app"
		p.because("Quarkus: its parts are layers of their own")
	case boot && atLeastVersion(bootVersion, 3, 3):
		d.Layers, d.Command = "tools", []string{"java", "-XX:MaxRAMPercentage=75", "-jar", "app.jar"}
		p.because("Spring Boot %s: taken apart into layers, so that a new version of the program is a small one", bootVersion)
	case boot && atLeastVersion(bootVersion, 2, 3):
		launcher := "org.springframework.boot.loader.launch.JarLauncher"
		if !atLeastVersion(bootVersion, 3, 2) {
			launcher = "org.springframework.boot.loader.JarLauncher"
		}
		d.Layers, d.Command = "layertools", []string{"java", "-XX:MaxRAMPercentage=75", launcher}
		p.because("Spring Boot %s: taken apart into layers, so that a new version of the program is a small one", bootVersion)
	default:
		if boot {
			p.because("Spring Boot of a version that is not written there: one jar")
		} else {
			p.because("one jar, whose manifest names the class to start")
		}
		d.Command = []string{"java", "-XX:MaxRAMPercentage=75", "-jar", "app.jar"}
	}
	return p.fill("java.tmpl", d)
}

func submatch(re *regexp.Regexp, text string) string {
	if m := re.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

// javaLine is the version that is asked for, or the next one that is kept up:
// a newer compiler trips over what old plugins do.
func javaLine(version string) string {
	want, ok := parseVersion(version)
	if !ok {
		return javaDefault
	}
	for _, line := range javaVersions {
		if have, _ := parseVersion(line); slices.Compare(have, want) >= 0 {
			return line
		}
	}
	return version
}

func atLeastVersion(have string, want ...int) bool {
	v, ok := parseVersion(have)
	return ok && slices.Compare(v, want) >= 0
}

func (t tree) maven(p *Plan, d *javaData, line string) {
	p.because("pom.xml: Java %s", line)
	d.Cache = "/root/.m2"
	mvn := "mvn"
	d.Build = image(mavenBuild, line)
	if t.has("mvnw") && t.has(".mvn/wrapper/maven-wrapper.properties") {
		mvn, d.Build = "sh ./mvnw", image(javaBuild, line)
		p.because("mvnw: the Maven that the tree asks for")
	}
	mvn += " --batch-mode --no-transfer-progress"
	d.Package = mvn + " -DskipTests package"
	if strings.Contains(t.read("pom.xml"), "<modules>") {
		p.because("several modules: the largest jar of them is the program")
	}
}

func (t tree) gradle(p *Plan, d *javaData, file, line string) {
	p.because("%s: Java %s", file, line)
	d.Cache = "/root/.gradle"
	if t.has("gradlew") && t.has("gradle/wrapper/gradle-wrapper.jar") {
		d.Build, d.Package = image(javaBuild, line), "sh ./gradlew --no-daemon assemble"
		p.because("gradlew: the Gradle that the tree asks for")
	} else {
		version := "9"
		if m := wrapper.FindStringSubmatch(t.read("gradle/wrapper/gradle-wrapper.properties")); m != nil {
			version = m[1]
		} else if line == "8" || line == "11" {
			version = "8" // 9 does not run on those
		}
		d.Build, d.Package = image(gradle, fmt.Sprintf("%s-jdk%s", version, line)), "gradle --no-daemon assemble"
	}
	d.Package += " -x test"
	if strings.Contains(t.read("settings.gradle")+t.read("settings.gradle.kts"), "include") {
		p.because("several projects: the largest jar of them is the program")
	}
}
