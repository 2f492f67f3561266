
&
explanationsBgrad_cam
(
labelsBfrontalBlateral
¯
spec¦B›{
  "format": 1,
  "name": "view_cnn",
  "labels": [
    "frontal",
    "lateral"
  ],
  "task": "binary",
  "image_size": [
    64,
    64
  ],
  "pixel_rule": "unit_stretch",
  "thresholds": {
    "frontal": 0.6,
    "lateral": 0.55
  },
  "temperature": 1.5,
  "provenance": {}
}

viewdescribe