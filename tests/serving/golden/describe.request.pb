

viewdescribe